#include "word_counter.h"

namespace ansatz::text {

void WordCounter::grow() {
  std::vector<uint32_t> slots(slots_.size() * 2, 0);
  const size_t mask = slots.size() - 1;
  for (size_t w = 0; w < words_.size(); w++) {
    size_t k = words_[w].hash & mask;
    while (slots[k]) k = (k + 1) & mask;
    slots[k] = static_cast<uint32_t>(w + 1);
  }
  slots_.swap(slots);
}

void WordCounter::add(const uint8_t* p, size_t n, uint64_t count) {
  const uint64_t hash = hash_bytes(p, n);
  const size_t mask = slots_.size() - 1;
  size_t k = hash & mask;
  for (; slots_[k]; k = (k + 1) & mask) {
    Word& word = words_[slots_[k] - 1];
    if (word.hash == hash && word.length == n && std::memcmp(arena_.data() + word.offset, p, n) == 0) {
      word.count += count;
      return;
    }
  }
  words_.push_back({hash, arena_.size(), count, static_cast<uint32_t>(n)});
  slots_[k] = static_cast<uint32_t>(words_.size());
  arena_.insert(arena_.end(), p, p + n);
  if (words_.size() * 2 > slots_.size()) grow();
}

void WordCounter::add_text(const Pattern& pattern, const uint8_t* p, size_t n) {
  const ClassTable& table = class_table();
  for (const uint8_t* end = p + n; p < end;) {
    const uint8_t* next = next_piece(pattern, table, p, end);
    add(p, static_cast<size_t>(next - p));
    p = next;
  }
}

void WordCounter::merge(const WordCounter& other) {
  for (const Word& word : other.words_) add(other.bytes(word), word.length, word.count);
}

}  // namespace ansatz::text
