#include "bpe_trainer.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

namespace ansatz::text {

BpeTrainer::BpeTrainer(TrainerSpec spec) : spec_(std::move(spec)) {
  spec_.min_frequency = std::max<uint64_t>(spec_.min_frequency, 1);
  tokens_.resize(spec_.reserved.size() + 256);
  for (uint32_t b = 0; b < 256; b++) {
    tokens_[spec_.byte_ids[b]] = std::string(1, static_cast<char>(b));
    token_ids_[tokens_[spec_.byte_ids[b]]] = spec_.byte_ids[b];
  }
  for (const std::string& bytes : spec_.reserved)
    if (!bytes.empty()) token_ids_[bytes] = forbidden;
  tokens_made = static_cast<uint32_t>(tokens_.size());
}

namespace {

bool is_graph(uint8_t byte) { return byte > 0x20 && byte < 0x7f; }

// Cuts long texts so that threads share them. After a newline between two printable ASCII characters every pattern
// that splits at all has a piece boundary, whatever comes before or after.
std::vector<Span> share_out(const std::vector<Span>& texts, const Pattern& pattern) {
  constexpr size_t share = size_t{1} << 20;
  if (pattern.kind == Pattern::WHOLE) return texts;
  std::vector<Span> shares;
  for (const Span& text : texts) {
    size_t begin = 0;
    for (size_t k = share; k + 1 < text.size; k++) {
      if (text.data[k] != '\n' || !is_graph(text.data[k - 1]) || !is_graph(text.data[k + 1])) continue;
      shares.push_back({text.data + begin, k + 1 - begin});
      begin = k + 1;
      k = begin + share;
    }
    shares.push_back({text.data + begin, text.size - begin});
  }
  return shares;
}

}  // namespace

void BpeTrainer::add_texts(const std::vector<Span>& whole_texts, int threads) {
  const std::vector<Span> texts = share_out(whole_texts, spec_.pattern);
  const size_t wanted = std::max<size_t>(1, std::min<size_t>(static_cast<size_t>(std::max(threads, 1)), texts.size()));
  if (counters_.size() < wanted) counters_.resize(wanted);
  std::atomic<size_t> next{0};
  const auto work = [&](WordCounter& counter) {
    for (size_t k; (k = next.fetch_add(1)) < texts.size();) {
      counter.add_text(spec_.pattern, texts[k].data, texts[k].size);
      bytes_counted += texts[k].size;
    }
  };
  std::vector<std::thread> helpers;
  for (size_t t = 1; t < wanted; t++) helpers.emplace_back([&, t] { work(counters_[t]); });
  work(counters_[0]);
  for (std::thread& helper : helpers) helper.join();
}

void BpeTrainer::add_pieces(Span text, const uint32_t* ends, size_t count) {
  size_t begin = 0;
  for (size_t k = 0; k < count; k++) {
    const size_t end = std::min<size_t>(ends[k], text.size);
    if (end > begin) counters_[0].add(text.data + begin, end - begin);
    begin = end;
  }
  bytes_counted += text.size;
}

uint32_t BpeTrainer::pair_index(uint32_t left, uint32_t right) {
  if (pairs_.size() * 2 >= pair_slots_.size()) {
    pair_slots_.assign(std::max<size_t>(1024, pair_slots_.size() * 2), 0);
    const size_t mask = pair_slots_.size() - 1;
    for (size_t p = 0; p < pairs_.size(); p++) {
      size_t k = hash_key(pair_key(pairs_[p].left, pairs_[p].right)) & mask;
      while (pair_slots_[k]) k = (k + 1) & mask;
      pair_slots_[k] = static_cast<uint32_t>(p + 1);
    }
  }
  const size_t mask = pair_slots_.size() - 1;
  size_t k = hash_key(pair_key(left, right)) & mask;
  for (; pair_slots_[k]; k = (k + 1) & mask) {
    const Pair& pair = pairs_[pair_slots_[k] - 1];
    if (pair.left == left && pair.right == right) return pair_slots_[k] - 1;
  }
  pairs_.push_back({left, right, 0, no_product, {}});
  pair_slots_[k] = static_cast<uint32_t>(pairs_.size());
  return static_cast<uint32_t>(pairs_.size() - 1);
}

void BpeTrainer::push(uint32_t pair) {
  const Pair& p = pairs_[pair];
  if (p.count < spec_.min_frequency) return;   // counts only fall, unless new occurrences push the pair again
  heap_.push_back({p.count, pair_key(p.left, p.right), pair});
  std::push_heap(heap_.begin(), heap_.end());
}

void BpeTrainer::build() {
  WordCounter& all = counters_[0];
  for (size_t t = 1; t < counters_.size(); t++) {
    all.merge(counters_[t]);
    counters_[t] = WordCounter();
  }
  word_total_ = all.words().size();
  for (const WordCounter::Word& word : all.words()) {
    if (word.length < 2) continue;
    const uint8_t* bytes = all.bytes(word);
    const uint32_t w = static_cast<uint32_t>(word_begin_.size());
    word_begin_.push_back(symbols_.size());
    word_count_.push_back(word.count);
    word_length_.push_back(word.length);
    for (uint32_t k = 0; k < word.length; k++) symbols_.push_back(spec_.byte_ids[bytes[k]]);
    for (uint32_t k = 0; k + 1 < word.length; k++) {
      Pair& pair = pairs_[pair_index(spec_.byte_ids[bytes[k]], spec_.byte_ids[bytes[k + 1]])];
      pair.count += word.count;
      if (pair.words.empty() || pair.words.back() != w) pair.words.push_back(w);
    }
  }
  counters_.clear();
  for (uint32_t p = 0; p < pairs_.size(); p++) push(p);
  before_.resize(std::max<size_t>(spec_.vocab_size, tokens_.size()) + 1);
  after_.resize(before_.size());
  built_ = true;
}

// The id that the merged pair gets: a new one, or the one its bytes already have by another way.
bool BpeTrainer::choose_product(Pair& pair) {
  if (pair.product == no_product) {
    const std::string bytes = tokens_[pair.left] + tokens_[pair.right];
    const auto [at, added] = token_ids_.try_emplace(bytes, static_cast<uint32_t>(tokens_.size()));
    pair.product = at->second;
    if (added) tokens_.push_back(bytes);
    if (pair.product != forbidden) merges_.insert(merges_.end(), {pair.left, pair.right, pair.product});
  }
  return pair.product != forbidden;
}

void BpeTrainer::merge_in_word(uint32_t word, uint32_t left, uint32_t right, uint32_t product) {
  uint32_t* s = symbols_.data() + word_begin_[word];
  const uint64_t count = word_count_[word];
  const uint32_t length = word_length_[word];
  const auto note = [&](std::vector<Neighbour>& side, std::vector<uint32_t>& touched, uint32_t token) {
    Neighbour& n = side[token];
    if (n.words.empty()) touched.push_back(token);
    n.count += count;
    if (n.words.empty() || n.words.back() != word) n.words.push_back(word);
  };
  uint32_t kept = 0;
  for (uint32_t k = 0; k < length;) {
    if (k + 1 < length && s[k] == left && s[k + 1] == right) {
      if (kept) note(before_, touched_before_, s[kept - 1]);
      if (k + 2 < length) note(after_, touched_after_, s[k + 2]);
      s[kept++] = product;
      k += 2;
    } else {
      s[kept++] = s[k++];
    }
  }
  word_length_[word] = kept;
}

// (x, left) became (x, product) and (right, y) became (product, y). In "left right left right" the second occurrence
// sees the product before it: the sums stay right because each step adds what the step before it took as given.
void BpeTrainer::apply_neighbours(uint32_t left, uint32_t right, uint32_t product) {
  std::vector<uint32_t> grown;
  const auto add = [&](uint32_t a, uint32_t b, Neighbour& n) {
    const uint32_t p = pair_index(a, b);
    pairs_[p].count += n.count;
    std::vector<uint32_t>& words = pairs_[p].words;
    if (words.empty()) words.swap(n.words);
    else words.insert(words.end(), n.words.begin(), n.words.end());
    grown.push_back(p);
  };
  for (const uint32_t x : touched_before_) add(x, product, before_[x]);
  for (const uint32_t y : touched_after_) add(product, y, after_[y]);
  for (const uint32_t x : touched_before_) pairs_[pair_index(x, left)].count -= before_[x].count;
  for (const uint32_t y : touched_after_) pairs_[pair_index(right, y)].count -= after_[y].count;
  for (const uint32_t x : touched_before_) before_[x] = Neighbour();
  for (const uint32_t y : touched_after_) after_[y] = Neighbour();
  touched_before_.clear();
  touched_after_.clear();
  std::sort(grown.begin(), grown.end());
  grown.erase(std::unique(grown.begin(), grown.end()), grown.end());
  for (const uint32_t p : grown) push(p);
}

void BpeTrainer::merge(uint32_t index) {
  const uint32_t left = pairs_[index].left, right = pairs_[index].right, product = pairs_[index].product;
  std::vector<uint32_t> words;
  words.swap(pairs_[index].words);
  for (const uint32_t word : words) merge_in_word(word, left, right, product);
  apply_neighbours(left, right, product);
  pairs_[index].count = 0;
}

bool BpeTrainer::run(double milliseconds) {
  const auto start = std::chrono::steady_clock::now();
  if (!built_) build();
  for (uint32_t step = 1; !heap_.empty() && tokens_.size() < spec_.vocab_size; step++) {
    std::pop_heap(heap_.begin(), heap_.end());
    const Candidate top = heap_.back();
    heap_.pop_back();
    Pair& pair = pairs_[top.pair];
    if (top.count != pair.count) {
      push(top.pair);
    } else if (choose_product(pair)) {
      merge(top.pair);
      tokens_made = static_cast<uint32_t>(tokens_.size());
    }
    if (milliseconds >= 0 && step % 16 == 0) {
      const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - start;
      if (spent.count() > milliseconds) return false;
    }
  }
  return true;
}

}  // namespace ansatz::text
