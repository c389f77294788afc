// Products with weights in blocks (quant.h): how rows are taken, packed, multiplied and put away. One row reads each weight
// once, at the speed of memory; many rows share what is read and unpacked.
#pragma once
#include "../core/pool.h"
#include "quant_tile.h"

namespace ansatz {
namespace {

constexpr int64_t ROWS = 504;              // rows whose activations are packed at a time
constexpr int64_t SERIAL = 6 << 10;        // elements that one thread packs rather than wake the others
constexpr int64_t OWN = 64 << 10;          // elements that every thread packs for itself rather than wait for others
constexpr int64_t SLICE_BYTES = 512 << 10; // weights of a task, at least
constexpr int64_t SHARED_TILES_INT = 8, SHARED_TILES_PAIR = 4, SHARED_TILES_FLOAT = 2;   // 16 KB: of the L1 cache
constexpr int64_t AHEAD_BYTES = 4096;      // how far one row's product asks for weights ahead
constexpr int64_t HELD = 512 << 10;        // bytes of activations in the L2 cache

ANSATZ_INLINE int64_t bytes_of(int32_t t) { return t == BF16 ? 2 : 4; }

// Where the rows of a product come from. PLAIN: row r of x. SCALED: S rows from one, row r / S of x times row r % S of
// `scales`. PATCH: the taps of a convolution over S modules: of token r / S and module r % S, what `reach` tokens have in
// the J modules around it, x [tokens, reach, S, M]; modules beyond the edges are zero.
enum Source { PLAIN, SCALED, PATCH };

struct Product {
  int32_t format;
  Kind kind;
  Source source;
  bool round;                 // activations to bf16
  int64_t n, k;
  const void* x;
  int32_t x_type, y_type, bias_type, addend_type;
  int64_t S;                  // rows that belong together; of PLAIN, one
  const void* scales;
  int32_t scales_type;
  int64_t reach, J, M;
  const struct Modules* modules;   // of PATCH: what quantise_modules() made of x; or null
  int64_t bias_step, group_step;   // between biases of the rows that belong together, and between such groups in y
  const void* addend;
  float alpha;
  const char* packed;         // panels of activations
};

// Rows that meet one matrix, and where their results go.
struct Segment {
  int64_t row, rows;
  const char* w;
  void* y;
  const void* bias;
  int64_t panel, panels;   // which panels they are packed in
};

// Row r of SCALED as column c of a panel; INTS are quantised as they are scaled.
template <class T, class D>
ANSATZ_INLINE void pack_scaled(const Product& p, const T* x, const D* d, char* panel, int64_t width, int64_t c, int thread) {
  const auto at = [&](int64_t j, int64_t n) { return n >= W ? load(x + j) * load(d + j) : load_n(x + j, n) * load_n(d + j, n); };
  if (p.kind <= INTS4) return quantise_column(at, p.k, panel, width, c);
  float* const room = static_cast<float*>(pool_scratch(thread, 0, p.k * 4 + 64));
  for (int64_t k = 0; k < p.k; k += W) {
    const int64_t left = p.k - k;
    if (left >= W) store(room + k, at(k, W));
    else store_n(room + k, at(k, left), left);
  }
  pack_column(p.kind, panel, width, c, room, p.k, p.round);
}

// The taps that row r of PATCH sees, as floats in `room`.
template <class T> void gather_patch(const Product& p, int64_t r, float* room) {
  const int64_t token = r / p.S, s = r % p.S;
  const int64_t half = (p.J - 1) / 2, first = s - half < 0 ? half - s : 0, last = s + half >= p.S ? p.S - 1 - s + half : p.J - 1;
  for (int64_t t = 0; t < p.reach; t++) {
    const T* const x = static_cast<const T*>(p.x) + ((token * p.reach + t) * p.S + s - half) * p.M;
    float* const to = room + t * p.J * p.M;
    std::memset(to, 0, static_cast<size_t>(first * p.M) * 4);
    convert_run(to + first * p.M, x + first * p.M, (last + 1 - first) * p.M);
    std::memset(to + (last + 1) * p.M, 0, static_cast<size_t>((p.J - 1 - last) * p.M) * 4);
  }
}

// A module that ends with a group is quantised once for all rows and taps that see it: for each module of each token its
// groups' codes, then their scales, then what corrects them.
ANSATZ_INLINE int64_t module_bytes(int64_t M) { return M / GROUP * 40; }

// Quantised modules [m0, m1) of the tokens from `token` on that rows of PATCH look at.
struct Modules {
  const char* at;
  int64_t token, m0, m1;
  ANSATZ_INLINE const char* of(const Product& p, int64_t row_token, int64_t t, int64_t m) const;
};

template <class T> void quantise_module(const T* x, int64_t M, char* to) {
  const int64_t groups = M / GROUP;
  char* const scales = to + groups * GROUP;
  quantise_row([&](int64_t j, int64_t) { return load(x + j); }, M, groups, to, GROUP, [&](int64_t g, float scale, int32_t fix) {
    std::memcpy(scales + g * 4, &scale, 4);
    std::memcpy(scales + (groups + g) * 4, &fix, 4);
  });
}

// Those that rows [begin, end) see with `half` neighbours on either side, to `room`.
Modules quantise_modules(const Product& p, int64_t begin, int64_t end, int64_t half, char* room) {
  const int64_t first = begin / p.S, last = (end - 1) / p.S;
  const bool part = first == last;   // rows of one token: of some of its modules
  const int64_t from = begin % p.S - half, to = (end - 1) % p.S + half + 1;
  const Modules made = {room, first, part && from > 0 ? from : 0, part && to < p.S ? to : p.S};
  for (int64_t tap = first * p.reach; tap < (last + 1) * p.reach; tap++)
    for (int64_t m = made.m0; m < made.m1; m++, room += module_bytes(p.M)) {
      const int64_t at = (tap * p.S + m) * p.M;
      if (p.x_type == BF16) quantise_module(static_cast<const bf16*>(p.x) + at, p.M, room);
      else quantise_module(static_cast<const float*>(p.x) + at, p.M, room);
    }
  return made;
}
ANSATZ_INLINE int64_t modules_bytes(const Product& p, int64_t rows) { return (rows / p.S + 2) * p.reach * p.S * module_bytes(p.M); }
ANSATZ_INLINE const char* Modules::of(const Product& p, int64_t row_token, int64_t t, int64_t m) const {
  return at + (((row_token - token) * p.reach + t) * (m1 - m0) + m - m0) * module_bytes(p.M);
}

// Row r of PATCH as column c of a panel, from quantised modules.
void pack_modules(const Product& p, int64_t r, char* panel, int64_t width, int64_t c) {
  const int64_t token = r / p.S, s = r % p.S, half = (p.J - 1) / 2, groups = p.M / GROUP, all = 2 * tiles_of(p.k);
  char* to = panel + c * 32;
  char* scales = panel + width * 32 + c * 4;
  const auto put = [&](const char* codes, const char* scale, const char* fix) {
    std::memcpy(to, codes, GROUP);
    std::memcpy(scales, scale, 4);
    std::memcpy(scales + width * 4, fix, 4);
    to += width * 40;
    scales += width * 40;
  };
  static const char zero[GROUP] = {};
  int64_t n = 0;
  for (int64_t t = 0; t < p.reach; t++)
    for (int64_t j = 0; j < p.J; j++) {
      const int64_t m = s + j - half;
      const bool there = m >= 0 && m < p.S;
      const char* const from = there ? p.modules->of(p, token, t, m) : nullptr;
      for (int64_t g = 0; g < groups; g++, n++) {
        if (there) put(from + g * GROUP, from + groups * GROUP + g * 4, from + groups * GROUP + (groups + g) * 4);
        else put(zero, zero, zero);
      }
    }
  for (; n < all; n++) put(zero, zero, zero);
}

void pack_row(const Product& p, int64_t r, char* panel, int64_t width, int64_t c, int thread) {
  const auto plain = [&](const auto* x) { pack_column(p.kind, panel, width, c, x, p.k, p.round); };
  const bool half = p.x_type == BF16;
  if (p.source == PLAIN) {
    if (half) plain(static_cast<const bf16*>(p.x) + r * p.k);
    else plain(static_cast<const float*>(p.x) + r * p.k);
  } else if (p.source == SCALED) {
    const int64_t x = r / p.S * p.k, d = r % p.S * p.k;
    const auto scaled = [&](const auto* values) {
      if (p.scales_type == BF16) pack_scaled(p, values + x, static_cast<const bf16*>(p.scales) + d, panel, width, c, thread);
      else pack_scaled(p, values + x, static_cast<const float*>(p.scales) + d, panel, width, c, thread);
    };
    if (half) scaled(static_cast<const bf16*>(p.x));
    else scaled(static_cast<const float*>(p.x));
  } else if (p.modules) {
    pack_modules(p, r, panel, width, c);
  } else {
    float* const room = static_cast<float*>(pool_scratch(thread, 0, p.k * 4 + 64));
    if (half) gather_patch<bf16>(p, r, room);
    else gather_patch<float>(p, r, room);
    plain(room);
  }
}

void pack_panels(const Product& p, char* to, const Panel* panels, int64_t count) {
  const auto one = [&](int64_t i, int thread) {
    const Panel& panel = panels[i];
    for (int64_t c = 0; c < panel.width; c++) pack_row(p, panel.row + c, to + panel.at, panel.width, c, thread);
  };
  const int64_t rows = count ? panels[count - 1].row + panels[count - 1].width - panels[0].row : 0;
  if (rows <= 1 || rows * p.k <= SERIAL) {
    for (int64_t i = 0; i < count; i++) one(i, 0);
  } else {
    parallel(count, one);   // a panel's columns share lines of the cache: never two threads to one
  }
}

// Sums of outputs [j, ...) of a panel's rows to y.
template <int S> void finish(const Product& p, const Segment& g, const Panel& panel, int64_t j, const Sums& sums) {
  constexpr int64_t WIDTH = S * STRIP;
  for (int64_t c = 0; c < panel.width; c++) {
    const int64_t r = panel.row + c, group = p.S > 1 ? r / p.S : r, member = r - group * p.S;
    const int64_t row = group * p.group_step + member * p.n, bias = member * p.bias_step;
    for (int64_t o = 0; o < WIDTH && j + o < p.n; o += W) {
      const int64_t at = row + j + o, left = p.n - j - o;
      vf v = load(sums.v + c * WIDTH + o) * p.alpha;
      if (g.bias) v += load_as(g.bias, p.bias_type, bias + j + o, left);
      if (p.addend) v += load_as(p.addend, p.addend_type, at, left);
      if (p.y_type == BF16) {
        bf16* const y = static_cast<bf16*>(g.y) + at;
        if (left >= W) store(y, v);
        else store_n(y, v, left);
      } else {
        float* const y = static_cast<float*>(g.y) + at;
        if (left >= W) store(y, v);
        else store_n(y, v, left);
      }
    }
  }
}

// `tiles` tiles of S strips of Q4 as Q8.
template <int S> void unpack_q4(const char* from, int64_t from_next, int64_t tiles, char* to, int64_t to_next) {
  const Q4Table levels;
  for (int s = 0; s < S; s++)
    for (int64_t t = 0; t < tiles; t++) {
      const char* const w = from + s * from_next + t * tile_bytes(Q4);
      char* const o = to + s * to_next + t * tile_bytes(Q8);
      std::memcpy(o, w, 64);
      for (int g = 0; g < 2; g++)
        for (int j = 0; j < 4; j++)
          for (int v = 0; v < VECTORS; v++) {
            Codes low, high;
            levels.decode(reinterpret_cast<const uint8_t*>(w) + 64 + g * 256 + j * 64 + v * W * 4, low, high);
            char* const at = o + 64 + g * 512 + j * 64 + v * W * 4;
            store_q8(at, low);
            store_q8(at + 256, high);
          }
    }
}

// Strips [s0, s1) of the matrix at w, for all the panels.
template <Kind KIND, int S>
void multiply(const Product& p, const Segment& g, int64_t s0, int64_t s1, const Panel* panels, int64_t count, int thread) {
  const char* const w = g.w;
  constexpr int64_t SHARED = KIND <= INTS4 ? SHARED_TILES_INT : KIND == PAIRS ? SHARED_TILES_PAIR : SHARED_TILES_FLOAT;
  constexpr Kind UNPACKED = KIND == INTS4 ? INTS8 : KIND;
  const int64_t tiles = tiles_of(p.k), strip = tiles * kind_tile_bytes<KIND>(), sets = ceil_div(s1 - s0, S);
  // A rest of less than half a block joins the one before it.
  const int64_t block = count > 1 && tiles > SHARED + SHARED / 2 ? SHARED : tiles;
  const bool unpack = KIND == INTS4 && count > 2;
  const int64_t rows = panels[count - 1].row + panels[count - 1].width - panels[0].row;
  const int64_t together = rows * tiles * column_bytes(KIND) <= HELD ? 1 : 4;   // sets of strips that share a piece of x
  Sums* const sums = static_cast<Sums*>(pool_scratch(thread, 0, together * count * int64_t(sizeof(Sums))));
  const int64_t room = unpack ? S * block * tile_bytes(Q8) : 0;
  char* const wide = unpack ? static_cast<char*>(pool_scratch(thread, 1, room)) : nullptr;
  for (int64_t first = 0; first < sets; first += together) {
    const int64_t last = least(sets, first + together);
    for (int64_t t = 0; t < tiles; t += block) {
      const int64_t n = least(block, tiles - t);
      for (int64_t set = first; set < last; set++) {
        const int64_t strip0 = s0 + set * S;
        constexpr int64_t TB = kind_tile_bytes<KIND>(), LINES = TB / 64;
        const char* const at = w + strip0 * strip + t * TB;
        const int64_t next = strip0 + S <= s1 ? strip : 0;   // an odd last strip is computed twice
        WeightPlace place = {at, next, nullptr, strip, TB, 0, LINES, 0, 0};
        if (count == 1) {
          const int64_t far = least(AHEAD_BYTES / TB, tiles);
          place.soon = at + far * TB;
          place.turn = tiles - far;
          place.jump = (S - 1) * strip;   // the strips of the next set
        } else if (set + 1 < last) {
          place.soon = at + S * strip;
        } else {
          place.soon = at + (first - set) * S * strip + block * TB;
          if (t + n == tiles) place.soon += S * together * strip - tiles * TB;
        }
        if (unpack) {
          unpack_q4<S>(at, next, n, wide, block * tile_bytes(Q8));
          place.w = wide;
          place.next = block * tile_bytes(Q8);
        }
        for (int64_t i = 0; i < count; i++) {
          const Panel& panel = panels[i];
          place.line0 = LINES * i / count;
          place.line1 = LINES * (i + 1) / count;
          Sums& sum = sums[(set - first) * count + i];
          const char* const a = p.packed + panel.at + t * panel.width * column_bytes(KIND);
          (unpack ? tile_for<UNPACKED, S>(panel.width) : tile_for<KIND, S>(panel.width))(place, a, n, t == 0, sum);
          if (t + n == tiles) finish<S>(p, g, panel, strip0 * STRIP, sum);
        }
      }
    }
  }
}

// One row (of f32 weights: a few) is bound by memory, which is fastest read as one run: one strip at a time.
template <Kind KIND>
void multiply_kind(const Product& p, const Segment& g, int64_t s0, int64_t s1, const Panel* panels, int64_t count, int thread) {
  if (count == 1 && (panels[0].width == 1 || KIND == FLOATS)) multiply<KIND, 1>(p, g, s0, s1, panels, count, thread);
  else multiply<KIND, STRIPS>(p, g, s0, s1, panels, count, thread);
}

void multiply_any(const Product& p, const Segment& g, int64_t s0, int64_t s1, const Panel* panels, int64_t count, int thread) {
  switch (p.kind) {
    case INTS8: return multiply_kind<INTS8>(p, g, s0, s1, panels, count, thread);
    case INTS4: return multiply_kind<INTS4>(p, g, s0, s1, panels, count, thread);
#if defined(__AVX512BF16__)
    case PAIRS: return multiply_kind<PAIRS>(p, g, s0, s1, panels, count, thread);
#endif
    case FLOATS: return multiply_kind<FLOATS>(p, g, s0, s1, panels, count, thread);
    default: return multiply_kind<WIDE>(p, g, s0, s1, panels, count, thread);
  }
}

// Rows [begin, end) with all matrices of some segments on this thread: they are packed where they are used.
void multiply_rows(const Product& p, const Segment* segments, int64_t count, int64_t begin, int64_t end, int thread) {
  const int64_t tiles = tiles_of(p.k), before = ceil_div(((end - begin) / MOST + 2) * int64_t(sizeof(Panel)), 64) * 64;
  char* const room = static_cast<char*>(pool_scratch(thread, 2, before + (end - begin) * tiles * column_bytes(p.kind)));
  Panel* const panels = reinterpret_cast<Panel*>(room);
  int64_t at = 0;
  const int64_t n = cut_panels(begin, end - begin, tiles, p.kind, panels, at);
  Product q = p;
  q.packed = room + before;
  for (int64_t i = 0; i < n; i++)
    for (int64_t c = 0; c < panels[i].width; c++) pack_row(q, panels[i].row + c, room + before + panels[i].at, panels[i].width, c, thread);
  for (int64_t k = 0; k < count; k++) multiply_any(q, segments[k], 0, strips_of(p.n), panels, n, thread);
}

// Whether rows are shared out rather than weights: the weights are few beside them, and what one core writes for another
// arrives late. A task's rows are contiguous, so that the next layer's rows were written by the same core more often than not.
ANSATZ_INLINE bool share_rows(int64_t rows, int64_t n) { return rows >= 2 * pool_threads() && rows * 4 >= n; }
constexpr int64_t TASK_ROWS = 96, TASK_BYTES = 384 << 10;   // of a task at most; packed rows stay in the L2 cache
template <class F> void parallel_rows(const Product& p, int64_t rows, const F& f) {
  const int64_t fit = TASK_BYTES / (tiles_of(p.k) * column_bytes(p.kind)), most = fit > TASK_ROWS ? TASK_ROWS : fit < 4 * MOST ? 4 * MOST : fit;
  const int64_t threads = pool_threads(), tasks = rows <= threads * most ? threads : ceil_div(rows, most);
  parallel(tasks, [&](int64_t task, int thread) {
    const int64_t begin = rows * task / tasks, end = rows * (task + 1) / tasks;
    if (end > begin) f(begin, end, thread);
  });
}

// All products of some segments, at most ROWS rows in all: packs their rows, then multiplies. Tasks are contiguous
// slices of a matrix, a few to each thread, but none too small to be worth waking for.
void run_segments(Product& p, Segment* segments, int64_t count, int64_t rows) {
  const int64_t tiles = tiles_of(p.k), strips = strips_of(p.n), strip = strip_bytes(p.format, p.k), threads = pool_threads();
  const int64_t most = (rows / MOST + count + 1) * int64_t(sizeof(Panel));
  int64_t n = 0, busy = 0;
  const auto cut = [&](Panel* panels) {   // null: counts
    int64_t at = 0;
    n = busy = 0;
    for (int64_t i = 0; i < count; i++) {
      Segment& g = segments[i];
      busy += g.rows > 0;
      g.panel = n;
      g.panels = cut_panels(g.row, g.rows, tiles, p.kind, panels ? panels + n : nullptr, at);
      n += g.panels;
    }
  };
  cut(nullptr);
  const int64_t work = busy * strips * strip * (1 + rows / (4 * (busy > 0 ? busy : 1)));
  int64_t slices = least(threads * (rows > 32 ? 8 : 2), ceil_div(work, SLICE_BYTES));
  slices = ceil_div(slices < threads ? threads : slices, busy > 0 ? busy : 1);   // of a matrix
  const int64_t take = ceil_div(ceil_div(strips, slices), STRIPS) * STRIPS;
  slices = ceil_div(strips, take);
  // Narrow matrices with many rows: panels are shared out too.
  const int64_t each = n / (busy > 0 ? busy : 1), wanted = ceil_div(2 * threads, slices * (busy > 0 ? busy : 1));
  const int64_t groups = slices < threads && each > 1 ? least(wanted, each) : 1, tasks = count * slices * groups;
  const int64_t packed_bytes = ceil_div(rows * tiles * column_bytes(p.kind), 64) * 64, before = ceil_div(most, 64) * 64;
  // Where no thread has more than a task, each packs its rows for itself: what another one has written comes late.
  const bool own = tasks <= threads && rows > 1 && rows * p.k <= OWN;
  char* const packed = static_cast<char*>(pool_scratch(0, 2, before + packed_bytes * (own ? threads : 1))) + before;
  cut(reinterpret_cast<Panel*>(packed - before));
  const Panel* const panels = reinterpret_cast<const Panel*>(packed - before);
  if (!own) pack_panels(p, packed, panels, n);
  p.packed = packed;
  parallel(tasks, [&](int64_t task, int thread) {
    const Segment& g = segments[task / (slices * groups)];
    const int64_t s0 = task / groups % slices * take, group = task % groups;
    const int64_t first = g.panels * group / groups, last = g.panels * (group + 1) / groups;
    if (g.rows == 0 || last == first) return;
    Product q = p;
    if (own) {
      q.packed = packed + thread * packed_bytes;
      for (int64_t i = g.panel + first; i < g.panel + last; i++)
        for (int64_t c = 0; c < panels[i].width; c++)
          pack_row(p, panels[i].row + c, packed + thread * packed_bytes + panels[i].at, panels[i].width, c, thread);
    }
    multiply_any(q, g, s0, least(strips, s0 + take), panels + g.panel + first, last - first, thread);
  });
}

}  // namespace
}  // namespace ansatz
