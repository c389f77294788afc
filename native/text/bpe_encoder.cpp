#include "bpe_encoder.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

namespace ansatz::text {

BpeEncoder::BpeEncoder(EncoderSpec spec)
    : merges_(spec.byte_ids, spec.merges.data(), spec.merges.size() / 3),
      whole_words_(spec.whole_words.begin(), spec.whole_words.end()),
      raw_added_(std::move(spec.raw_added)),
      normalized_added_(std::move(spec.normalized_added)),
      pattern_(spec.pattern),
      prefix_(spec.prefix) {}

std::unique_ptr<BpeEncoder::Worker> BpeEncoder::take_worker() const {
  const std::lock_guard<std::mutex> guard(workers_lock_);
  if (workers_.empty()) return std::make_unique<Worker>();
  std::unique_ptr<Worker> worker = std::move(workers_.back());
  workers_.pop_back();
  return worker;
}

void BpeEncoder::return_worker(std::unique_ptr<Worker> worker) const {
  const std::lock_guard<std::mutex> guard(workers_lock_);
  workers_.push_back(std::move(worker));
}

void BpeEncoder::encode_piece(const uint8_t* p, size_t n, Worker& w, std::vector<int32_t>& out) const {
  const bool cached = n <= WordCache::longest;
  const uint64_t hash = cached ? hash_bytes(p, n) : 0;
  if (cached && w.cache.find(p, n, hash, out)) return;
  const size_t first = out.size();
  const auto whole = whole_words_.empty() ? whole_words_.end()
                                          : whole_words_.find(std::string(reinterpret_cast<const char*>(p), n));
  if (whole != whole_words_.end()) out.push_back(whole->second);
  else merges_.encode(p, n, w.scratch, out);
  if (cached) w.cache.insert(p, n, hash, out.data() + first, out.size() - first);
}

void BpeEncoder::encode_section(const uint8_t* p, const uint8_t* end, Worker& w, std::vector<int32_t>& out) const {
  if (p == end) return;
  const auto with_space = [&w](const uint8_t* from, const uint8_t* to) {
    w.prefixed.assign(1, ' ');
    w.prefixed.insert(w.prefixed.end(), from, to);
  };
  if (prefix_ == EncoderSpec::SECTION && *p != ' ') {
    with_space(p, end);
    p = w.prefixed.data();
    end = p + w.prefixed.size();
  }
  const ClassTable& table = class_table();
  while (p < end) {
    const uint8_t* next = next_piece(pattern_, table, p, end);
    if (prefix_ == EncoderSpec::PIECE && *p != ' ') {
      with_space(p, next);
      encode_piece(w.prefixed.data(), w.prefixed.size(), w, out);
    } else {
      encode_piece(p, static_cast<size_t>(next - p), w, out);
    }
    p = next;
  }
}

void BpeEncoder::encode_text(Span text, Match match, Worker& w, std::vector<int32_t>& out) const {
  if (match == Match::NOTHING || (raw_added_.empty() && normalized_added_.empty())) {
    encode_section(text.data, text.data + text.size, w, out);
    return;
  }
  w.sections.clear();
  raw_added_.split(text.data, 0, text.size, w.sections);
  for (const Section& outer : w.sections) {
    if (outer.id >= 0) {
      out.push_back(outer.id);
      continue;
    }
    w.inner.clear();
    normalized_added_.split(text.data, outer.begin, outer.end, w.inner);
    for (const Section& s : w.inner) {
      if (s.id >= 0) out.push_back(s.id);
      else encode_section(text.data + s.begin, text.data + s.end, w, out);
    }
  }
}

std::vector<int32_t> BpeEncoder::encode(Span text, Match match) const {
  std::unique_ptr<Worker> worker = take_worker();
  std::vector<int32_t> out;
  out.reserve(text.size / 3 + 4);
  encode_text(text, match, *worker, out);
  return_worker(std::move(worker));
  return out;
}

std::vector<std::vector<int32_t>> BpeEncoder::encode_batch(const std::vector<Span>& texts, Match match,
                                                           int threads) const {
  std::vector<std::vector<int32_t>> results(texts.size());
  std::atomic<size_t> next{0};
  const auto work = [&] {
    std::unique_ptr<Worker> worker = take_worker();
    for (size_t k; (k = next.fetch_add(1)) < texts.size();) {
      results[k].reserve(texts[k].size / 3 + 4);
      encode_text(texts[k], match, *worker, results[k]);
    }
    return_worker(std::move(worker));
  };
  std::vector<std::thread> helpers;
  const size_t wanted = std::min<size_t>(static_cast<size_t>(std::max(threads, 1)), texts.size());
  for (size_t k = 1; k < wanted; k++) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  return results;
}

std::vector<int32_t> BpeEncoder::encode_pieces(Span text, const uint32_t* ends, size_t count) const {
  std::unique_ptr<Worker> worker = take_worker();
  std::vector<int32_t> out;
  size_t begin = 0;
  for (size_t k = 0; k < count; k++) {
    const size_t end = std::min<size_t>(ends[k], text.size);
    if (end > begin) encode_piece(text.data + begin, end - begin, *worker, out);
    begin = end;
  }
  return_worker(std::move(worker));
  return out;
}

std::vector<Section> BpeEncoder::split_added(Span text, bool normalized) const {
  std::vector<Section> sections;
  (normalized ? normalized_added_ : raw_added_).split(text.data, 0, text.size, sections);
  return sections;
}

}  // namespace ansatz::text
