#include "bpe_merges.h"

#include <algorithm>
#include <functional>

namespace ansatz::text {

BpeMerges::BpeMerges(const uint32_t* byte_ids, const uint32_t* triples, size_t count) {
  std::memcpy(byte_ids_, byte_ids, sizeof byte_ids_);
  size_t size = 16;
  while (size < count * 2 + 2) size *= 2;
  table_.assign(size, Entry{~uint64_t{0}, none, none});
  mask_ = size - 1;
  count_ = count;
  for (size_t r = 0; r < count; r++) {
    const uint32_t* t = triples + 3 * r;
    Entry& entry = const_cast<Entry&>(find(t[0], t[1]));
    entry = Entry{pair_key(t[0], t[1]), static_cast<uint32_t>(r), t[2]};
  }
}

void BpeMerges::encode(const uint8_t* p, size_t n, MergeScratch& scratch, std::vector<int32_t>& out) const {
  // A scan for the lowest rank beats a heap while everything stays in the first-level cache.
  constexpr size_t longest_scanned = 64;
  if (n <= longest_scanned) encode_short(p, n, scratch, out);
  else encode_long(p, n, scratch, out);
}

void BpeMerges::encode_short(const uint8_t* p, size_t n, MergeScratch& s, std::vector<int32_t>& out) const {
  s.id.resize(n);
  s.rank.resize(n);
  s.product.resize(n);
  uint32_t *id = s.id.data(), *rank = s.rank.data(), *product = s.product.data();
  for (size_t k = 0; k < n; k++) id[k] = byte_ids_[p[k]];
  const auto look_up = [&](size_t k) {   // rank[k] belongs to the pair (k, k + 1)
    const Entry& entry = find(id[k], id[k + 1]);
    rank[k] = entry.rank;
    product[k] = entry.product;
  };
  for (size_t k = 0; k + 1 < n; k++) look_up(k);
  while (n > 1) {
    size_t best = 0;
    for (size_t k = 1; k + 1 < n; k++)
      if (rank[k] < rank[best]) best = k;
    if (rank[best] == none) break;
    id[best] = product[best];
    const size_t moved = n - best - 2;
    std::memmove(id + best + 1, id + best + 2, moved * sizeof *id);
    std::memmove(rank + best + 1, rank + best + 2, moved * sizeof *rank);
    std::memmove(product + best + 1, product + best + 2, moved * sizeof *product);
    n--;
    if (best > 0) look_up(best - 1);
    if (best + 1 < n) look_up(best);
  }
  for (size_t k = 0; k < n; k++) out.push_back(static_cast<int32_t>(id[k]));
}

// Symbols form a linked list. All occurrences of the lowest rank merge in one sweep from left to right; what they make
// joins the lists of other ranks. A merge may make a pair of lower rank still (if the file lists merges in an unusual
// order): the sweep then stops and goes on later. An entry is stale when its position no longer has that rank. A merge
// keeps the position of its left symbol, so "leftmost first" is the order of positions.
void BpeMerges::encode_long(const uint8_t* p, size_t n, MergeScratch& s, std::vector<int32_t>& out) const {
  const uint32_t count = static_cast<uint32_t>(n);
  const std::greater<uint32_t> lowest_first;
  s.id.resize(n);
  s.rank.assign(n, none);
  s.product.resize(n);
  s.prev.resize(n);
  s.next.resize(n);
  if (s.bucket_of.size() != count_) s.bucket_of.assign(count_, none);
  for (uint32_t k = 0; k < count; k++) {
    s.id[k] = byte_ids_[p[k]];
    s.prev[k] = k ? k - 1 : none;
    s.next[k] = k + 1 < count ? k + 1 : none;
  }

  const auto bucket = [&](uint32_t rank) -> std::vector<uint32_t>& {
    uint32_t& b = s.bucket_of[rank];
    if (b == none) {
      if (s.free_buckets.empty()) {
        b = static_cast<uint32_t>(s.buckets.size());
        s.buckets.emplace_back();
      } else {
        b = s.free_buckets.back();
        s.free_buckets.pop_back();
      }
      s.rank_heap.push_back(rank);
      std::push_heap(s.rank_heap.begin(), s.rank_heap.end(), lowest_first);
    }
    return s.buckets[b];
  };
  const auto look_up = [&](uint32_t k) {
    s.rank[k] = none;
    if (s.next[k] == none) return none;
    const Entry& entry = find(s.id[k], s.id[s.next[k]]);
    s.rank[k] = entry.rank;
    s.product[k] = entry.product;
    if (entry.rank != none) bucket(entry.rank).push_back(k);
    return entry.rank;
  };

  for (uint32_t k = 0; k < count; k++) look_up(k);
  std::vector<uint32_t> sweep;
  while (!s.rank_heap.empty()) {
    std::pop_heap(s.rank_heap.begin(), s.rank_heap.end(), lowest_first);
    const uint32_t rank = s.rank_heap.back();
    s.rank_heap.pop_back();
    sweep.clear();
    sweep.swap(s.buckets[s.bucket_of[rank]]);
    s.free_buckets.push_back(s.bucket_of[rank]);
    s.bucket_of[rank] = none;
    if (!std::is_sorted(sweep.begin(), sweep.end())) std::sort(sweep.begin(), sweep.end());
    for (size_t i = 0; i < sweep.size(); i++) {
      const uint32_t k = sweep[i];
      if (s.rank[k] != rank) continue;
      const uint32_t gone = s.next[k], before = s.prev[k];
      s.id[k] = s.product[k];
      s.next[k] = s.next[gone];
      if (s.next[k] != none) s.prev[s.next[k]] = k;
      s.rank[gone] = none;
      uint32_t lowest = none;
      if (before != none) lowest = look_up(before);
      lowest = std::min(lowest, look_up(k));
      if (lowest < rank && i + 1 < sweep.size()) {
        std::vector<uint32_t>& rest = bucket(rank);
        rest.insert(rest.end(), sweep.begin() + static_cast<ptrdiff_t>(i) + 1, sweep.end());
        break;
      }
    }
  }
  for (uint32_t k = 0; k != none; k = s.next[k]) out.push_back(static_cast<int32_t>(s.id[k]));
  if (n > (size_t{1} << 16)) s = MergeScratch();   // do not keep the memory of an exceptional piece
}

}  // namespace ansatz::text
