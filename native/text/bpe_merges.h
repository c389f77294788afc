// The merge rules of a byte-pair encoding and their application to one piece of text (Sennrich et al. 2016,
// arXiv:1508.07909): again and again, the adjacent pair of lowest rank, leftmost first, becomes one token.
#pragma once
#include <vector>

#include "hash.h"

namespace ansatz::text {

struct MergeScratch {
  std::vector<uint32_t> id, rank, product, prev, next;
  // Of long pieces: the ranks that occur, and for each the positions where it may.
  std::vector<uint32_t> rank_heap, bucket_of, free_buckets;
  std::vector<std::vector<uint32_t>> buckets;
};

class BpeMerges {
 public:
  static constexpr uint32_t none = 0xffffffffu;

  // triples = (left, right, product) in order of rank; a pair listed twice keeps its last rank.
  BpeMerges(const uint32_t* byte_ids, const uint32_t* triples, size_t count);

  // Appends the tokens of the piece p[0..n) to out. O(n log n) for any input; n < 2^32 - 1.
  void encode(const uint8_t* p, size_t n, MergeScratch& scratch, std::vector<int32_t>& out) const;

 private:
  struct Entry {
    uint64_t key;
    uint32_t rank, product;
  };
  const Entry& find(uint32_t a, uint32_t b) const {
    const uint64_t key = pair_key(a, b);
    for (size_t k = hash_key(key) & mask_;; k = (k + 1) & mask_)
      if (table_[k].key == key || table_[k].rank == none) return table_[k];
  }
  void encode_short(const uint8_t* p, size_t n, MergeScratch& scratch, std::vector<int32_t>& out) const;
  void encode_long(const uint8_t* p, size_t n, MergeScratch& scratch, std::vector<int32_t>& out) const;

  uint32_t byte_ids_[256];
  std::vector<Entry> table_;   // open addressing; rank none marks an empty slot
  size_t mask_, count_;
};

}  // namespace ansatz::text
