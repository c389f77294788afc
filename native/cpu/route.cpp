// Which expert gets which token: top-k over scores, limits on how many tokens an expert takes, and the permutation that
// brings each expert's tokens together. All results stay in device memory; nothing here depends on the thread count.
#include "sort_pairs.h"

namespace ansatz {
namespace {

constexpr int64_t CHUNK = 128;   // tokens of a task, and of one histogram
constexpr int32_t NEVER = INT32_MIN;

// Signed keys that ascend with the value, -0 as +0, NaN below every number, NEVER below all.
ANSATZ_INLINE int32_t rank_key(float x) {
  const uint32_t up = order_key(x, 0);
  return up == 0xffffffffu ? NEVER + 1 : static_cast<int32_t>(up ^ 0x80000000u);
}

ANSATZ_INLINE vi larger(vi a, vi b) { return a > b ? a : b; }

// First index of the largest of n keys; n is a multiple of W, padded with NEVER.
int64_t first_largest(const int32_t* key, int64_t n) {
  vi top = splat_i(NEVER);
  for (int64_t e = 0; e < n; e += W) top = larger(top, *reinterpret_cast<const vi_u*>(key + e));
  int32_t best = top[0];
  for (int l = 1; l < W; l++) best = top[l] > best ? top[l] : best;
  int64_t at = 0;
  while (key[at] != best) at++;
  return at;
}

// Experts stand in `groups` equal groups; all but the `keep` best groups are ruled out. A group's score is the sum of
// its two largest (DeepSeek-V3), or its largest when there is no bias (V2); ties go to the lowest group.
void limit_groups(int32_t* key, const float* value, int64_t E, int64_t groups, int64_t keep, bool two, int32_t* best) {
  const int64_t size = E / groups, padded = (groups + W - 1) / W * W;
  for (int64_t g = 0; g < padded; g++) best[g] = NEVER;
  for (int64_t g = 0; g < groups; g++) {
    float first = -__builtin_inff(), second = -__builtin_inff();
    for (int64_t e = g * size; e < (g + 1) * size; e++) {
      const float v = value[e];
      if (v > first) second = first, first = v;
      else if (v > second) second = v;
    }
    best[g] = rank_key(two && size > 1 ? first + second : first);
  }
  for (int64_t n = 0; n < keep; n++) best[first_largest(best, padded)] = NEVER;
  for (int64_t g = 0; g < groups; g++)
    if (best[g] != NEVER)
      for (int64_t e = g * size; e < (g + 1) * size; e++) key[e] = NEVER;
}

struct Route {
  int32_t *index, *slot, *pick, *offsets;
  float* counts;
  const float *scores, *bias;
  const int32_t* chosen;
  const float* use;
  int64_t n, E, k, R, span, capacity, order, groups, keep;
  bool by_row;
};

void choose(const Route& a, int64_t begin, int64_t end, int thread) {
  const int64_t padded = (a.E + W - 1) / W * W, more = a.groups > 1 ? (a.groups + W - 1) / W * W : 0;
  int32_t* const key = static_cast<int32_t*>(pool_scratch(thread, 0, (2 * padded + more) * 4));
  float* const value = reinterpret_cast<float*>(key + padded);
  int32_t* const best = key + 2 * padded;
  for (int64_t e = a.E; e < padded; e++) key[e] = NEVER;
  for (int64_t t = begin; t < end; t++) {
    if (a.chosen) {
      for (int64_t r = t * a.k; r < (t + 1) * a.k; r++) a.index[r] = a.chosen[r];
    } else {
      for (int64_t e = 0; e < a.E; e++) {
        value[e] = a.scores[t * a.E + e] + (a.bias ? a.bias[e] : 0.0f);
        key[e] = rank_key(value[e]);
      }
      if (a.groups > 1) limit_groups(key, value, a.E, a.groups, a.keep, a.bias != nullptr, best);
      for (int64_t j = 0; j < a.k; j++) {
        const int64_t e = first_largest(key, padded);
        a.index[t * a.k + j] = static_cast<int32_t>(e);
        key[e] = NEVER;
      }
    }
    for (int64_t r = t * a.k; r < (t + 1) * a.k; r++) a.slot[r] = a.use && a.use[r] == 0.0f ? -1 : 0;
  }
}

// Assignments of each row by rank of choice and expert, before anything is dropped.
void count_row(const Route& a, int64_t row) {
  float* const counts = a.counts + row * a.k * a.E;
  std::memset(counts, 0, static_cast<size_t>(a.k * a.E) * 4);
  for (int64_t t = row * a.span; t < (row + 1) * a.span; t++)
    for (int64_t j = 0; j < a.k; j++)
      if (a.slot[t * a.k + j] >= 0) counts[j * a.E + a.index[t * a.k + j]] += 1.0f;
}

// Tokens [begin, end) compete for `capacity` places at each expert; who comes too late is dropped.
void fill_places(const Route& a, int64_t begin, int64_t end, int thread) {
  const int64_t tokens = end - begin;
  int32_t* const taken = static_cast<int32_t*>(pool_scratch(thread, 0, a.E * 4));
  std::memset(taken, 0, static_cast<size_t>(a.E) * 4);
  const auto ask = [&](int64_t r) {
    if (a.slot[r] < 0) return;
    int32_t& n = taken[a.index[r]];
    if (n < a.capacity) n++;
    else a.slot[r] = -1;
  };
  if (a.order == 0) {
    for (int64_t r = begin * a.k; r < end * a.k; r++) ask(r);
    return;
  }
  const uint64_t* queue = nullptr;
  if (a.order == 2) {
    uint64_t* const pairs = static_cast<uint64_t*>(pool_scratch(thread, 1, 2 * tokens * 8));
    for (int64_t t = 0; t < tokens; t++) {
      const float first = a.scores[(begin + t) * a.E + a.index[(begin + t) * a.k]];
      pairs[t] = static_cast<uint64_t>(order_key(first, 0xffffffffu)) << 32 | static_cast<uint32_t>(t);
    }
    queue = sort_pairs(pairs, pairs + tokens, tokens, 4);
  }
  for (int64_t j = 0; j < a.k; j++)
    for (int64_t t = 0; t < tokens; t++) ask((begin + (queue ? low_word(queue[t]) : t)) * a.k + j);
}

// Stable counting sort of the assignments that were not dropped, by expert.
void sort_by_expert(const Route& a) {
  const int64_t chunks = (a.n + CHUNK - 1) / CHUNK, width = a.k;
  int32_t* const place = static_cast<int32_t*>(pool_scratch(0, 3, (chunks * a.E + 1) * 4));
  parallel(chunks, [&](int64_t chunk, int) {
    int32_t* const mine = place + chunk * a.E;
    std::memset(mine, 0, static_cast<size_t>(a.E) * 4);
    const int64_t last = (chunk + 1) * CHUNK < a.n ? (chunk + 1) * CHUNK : a.n;
    for (int64_t r = chunk * CHUNK * width; r < last * width; r++)
      if (a.slot[r] >= 0) mine[a.index[r]]++;
  });
  int32_t total = 0;
  for (int64_t e = 0; e < a.E; e++) {
    a.offsets[e] = total;
    for (int64_t c = 0; c < chunks; c++) {
      const int32_t here = place[c * a.E + e];
      place[c * a.E + e] = total;
      total += here;
    }
  }
  a.offsets[a.E] = total;
  if (total > a.R) return raise(INDEX_OUT_OF_RANGE, total, a.R + 1);
  parallel(chunks, [&](int64_t chunk, int) {
    int32_t* const mine = place + chunk * a.E;
    const int64_t last = (chunk + 1) * CHUNK < a.n ? (chunk + 1) * CHUNK : a.n;
    for (int64_t r = chunk * CHUNK * width; r < last * width; r++) {
      if (a.slot[r] < 0) continue;
      const int32_t at = mine[a.index[r]]++;
      a.slot[r] = at;
      a.pick[at] = static_cast<int32_t>(r);
    }
  });
  for (int64_t r = total; r < a.R; r++) a.pick[r] = -1;
}

void route(const Call& c) {
  Route a;
  a.index = c.ptr<int32_t>(0);
  a.slot = c.ptr<int32_t>(1);
  a.pick = c.ptr<int32_t>(2);
  a.offsets = c.ptr<int32_t>(3);
  a.counts = c.ptr<float>(4);
  a.scores = c.ptr<const float>(5);
  a.bias = c.ptr<const float>(6);
  a.chosen = c.ptr<const int32_t>(7);
  a.use = c.ptr<const float>(8);
  a.n = c.i[0], a.E = c.i[1], a.k = c.i[2], a.R = c.i[3], a.span = c.i[4];
  a.capacity = c.i[5], a.by_row = c.i[6] != 0, a.order = c.i[7], a.groups = c.i[8], a.keep = c.i[9];
  if (a.chosen)
    for (int64_t r = 0; r < a.n * a.k; r++)
      if (a.chosen[r] < 0 || a.chosen[r] >= a.E) return raise(INDEX_OUT_OF_RANGE, a.chosen[r], a.E);
  parallel_range(a.n, CHUNK, [&](int64_t begin, int64_t end, int thread) { choose(a, begin, end, thread); });
  const int64_t rows = a.span > 0 ? a.n / a.span : 0;
  parallel(rows, [&](int64_t row, int) { count_row(a, row); });
  if (a.capacity > 0) {
    const int64_t size = a.by_row ? a.span : a.n;
    parallel(size > 0 ? a.n / size : 0, [&](int64_t s, int thread) { fill_places(a, s * size, (s + 1) * size, thread); });
  }
  sort_by_expert(a);
}

// The c smallest of n distinct keys, moved to the front in any order (Hoare's selection).
void partition_smallest(uint64_t* x, int64_t n, int64_t c) {
  int64_t lo = 0, hi = n - 1;
  while (lo < hi) {
    const uint64_t pivot = x[lo + (hi - lo) / 2];
    int64_t i = lo, j = hi;
    while (i <= j) {
      while (x[i] < pivot) i++;
      while (x[j] > pivot) j--;
      if (i <= j) {
        const uint64_t t = x[i];
        x[i++] = x[j];
        x[j--] = t;
      }
    }
    if (c - 1 <= j) hi = j;
    else if (c - 1 >= i) lo = i;
    else return;
  }
}

// Expert choice (Zhou et al. 2022): each expert takes its c best tokens of every scope of `size` tokens.
void route_choice(const Call& c) {
  int32_t *slot = c.ptr<int32_t>(0), *pick = c.ptr<int32_t>(1), *offsets = c.ptr<int32_t>(2);
  const float* scores = c.ptr<const float>(3);
  const float* use = c.ptr<const float>(4);
  const int64_t n = c.i[0], E = c.i[1], take = c.i[2], size = c.i[3], scopes = size > 0 ? n / size : 0;
  for (int64_t e = 0; e <= E; e++) offsets[e] = static_cast<int32_t>(e * take * scopes);
  parallel(E * scopes, [&](int64_t task, int thread) {
    const int64_t e = task / scopes, s = task % scopes, first = s * size;
    uint64_t* const key = static_cast<uint64_t*>(pool_scratch(thread, 0, (2 * size + 1) * 8));
    uint64_t* const copy = key + size;
    for (int64_t t = 0; t < size; t++) {
      // Tokens that may not be used come last, but keep their places: the groups have fixed sizes.
      const bool usable = !use || use[first + t] != 0.0f;
      const uint32_t order = usable ? order_key(scores[(first + t) * E + e], 0xffffffffu) : 0xffffffffu;
      key[t] = copy[t] = static_cast<uint64_t>(order) << 32 | static_cast<uint32_t>(t);
    }
    partition_smallest(copy, size, take);
    uint64_t most = 0;
    for (int64_t k = 0; k < take; k++) most = copy[k] > most ? copy[k] : most;
    int32_t at = static_cast<int32_t>((e * scopes + s) * take);
    for (int64_t t = 0; t < size; t++) {
      const int64_t r = (first + t) * E + e;
      if (take > 0 && key[t] <= most) {
        pick[at] = static_cast<int32_t>(r);
        slot[r] = at++;
      } else {
        slot[r] = -1;
      }
    }
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(route, {"route", route}, {"route_choice", route_choice})
