// Memory of pieces already encoded. Natural text and code repeat a small set of words, so most pieces cost one hash and
// one comparison. One cache belongs to one thread at a time; when it is full it starts again from nothing.
#pragma once
#include <vector>

#include "hash.h"

namespace ansatz::text {

class WordCache {
 public:
  static constexpr size_t longest = 128;   // bytes; longer pieces rarely repeat

  // Appends the tokens of a known word to out and returns true.
  bool find(const uint8_t* p, size_t n, uint64_t hash, std::vector<int32_t>& out) const {
    const uint32_t tag = static_cast<uint32_t>(hash >> 32);
    for (size_t k = hash & mask;; k = (k + 1) & mask) {
      const Slot& slot = slots_[k];
      if (!slot.length) return false;
      if (slot.tag != tag || slot.length != n) continue;
      const uint32_t* entry = store_.data() + slot.offset;
      if (std::memcmp(entry + slot.count, p, n) != 0) continue;
      const int32_t* ids = reinterpret_cast<const int32_t*>(entry);
      if (slot.count == 1) out.push_back(*ids);
      else out.insert(out.end(), ids, ids + slot.count);
      return true;
    }
  }

  // 0 < n <= longest; the word is not in the cache.
  void insert(const uint8_t* p, size_t n, uint64_t hash, const int32_t* ids, size_t count) {
    const size_t needed = count + (n + 3) / 4;
    if (used_ >= (mask + 1) / 2 || store_.size() + needed > store_limit) clear();
    size_t k = hash & mask;
    while (slots_[k].length) k = (k + 1) & mask;
    const size_t offset = store_.size();
    store_.resize(offset + needed);
    std::memcpy(&store_[offset], ids, count * sizeof *ids);
    std::memcpy(&store_[offset + count], p, n);
    slots_[k] = {static_cast<uint32_t>(hash >> 32), static_cast<uint32_t>(offset), static_cast<uint16_t>(n),
                 static_cast<uint16_t>(count)};
    used_++;
  }

 private:
  static constexpr size_t mask = (size_t{1} << 17) - 1, store_limit = size_t{1} << 20;
  struct Slot {
    uint32_t tag, offset;
    uint16_t length, count;   // length 0: empty
  };
  void clear() {
    slots_.assign(mask + 1, Slot{});
    store_.clear();
    used_ = 0;
  }
  std::vector<Slot> slots_ = std::vector<Slot>(mask + 1);
  std::vector<uint32_t> store_;   // each word: its tokens, then its bytes
  size_t used_ = 0;
};

}  // namespace ansatz::text
