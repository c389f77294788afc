// Products with weights in blocks (quant.h): y = alpha x W^T + bias + addend, and the same with one matrix a group of
// rows. One row reads each weight once, at the speed of memory; many rows share what is read and unpacked.
#include "../core/pool.h"
#include "quant_tile.h"

namespace ansatz {
namespace {

constexpr int64_t ROWS = 504;              // rows whose activations are packed at a time
constexpr int64_t SERIAL = 32 << 10;       // elements that one thread packs rather than wake the others
constexpr int64_t SLICE_BYTES = 512 << 10; // weights of a task, at least
constexpr int64_t SHARED_TILES_INT = 8, SHARED_TILES_PAIR = 4, SHARED_TILES_FLOAT = 2;   // 16 KB: of the L1 cache
constexpr int64_t AHEAD_BYTES = 4096;      // how far one row's product asks for weights ahead
constexpr int64_t HELD = 512 << 10;        // bytes of activations in the L2 cache

ANSATZ_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
ANSATZ_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
ANSATZ_INLINE int64_t bytes_of(int32_t t) { return t == BF16 ? 2 : 4; }

struct Product {
  int32_t format;
  Kind kind;
  bool round;                 // activations to bf16
  int64_t n, k;
  const void* x;
  void* y;
  const void *bias, *addend;
  int32_t x_type, y_type, bias_type, addend_type;
  float alpha;
  const char* packed;         // panels of activations
};

void pack_panels(const Product& p, char* to, const Panel* panels, int64_t count) {
  const auto one = [&](int64_t i, int) {
    const Panel& panel = panels[i];
    for (int64_t c = 0; c < panel.width; c++) {
      const int64_t from = (panel.row + c) * p.k;
      if (p.x_type == BF16)
        pack_column(p.kind, to + panel.at, panel.width, c, static_cast<const bf16*>(p.x) + from, p.k, p.round);
      else pack_column(p.kind, to + panel.at, panel.width, c, static_cast<const float*>(p.x) + from, p.k, p.round);
    }
  };
  if (count * MOST * p.k <= SERIAL)
    for (int64_t i = 0; i < count; i++) one(i, 0);
  else parallel(count, one);
}

ANSATZ_INLINE vf load_as(const void* p, int32_t t, int64_t at, int64_t n) {
  if (t == BF16) {
    const bf16* x = static_cast<const bf16*>(p) + at;
    return n >= W ? load(x) : load_n(x, n);
  }
  const float* x = static_cast<const float*>(p) + at;
  return n >= W ? load(x) : load_n(x, n);
}

// Sums of outputs [j, ...) of a panel's rows to y.
template <int S> void finish(const Product& p, const Panel& panel, int64_t j, const Sums& sums) {
  constexpr int64_t WIDTH = S * STRIP;
  for (int64_t c = 0; c < panel.width; c++)
    for (int64_t o = 0; o < WIDTH && j + o < p.n; o += W) {
      const int64_t at = (panel.row + c) * p.n + j + o, left = p.n - j - o;
      vf v = load(sums.v + c * WIDTH + o) * p.alpha;
      if (p.bias) v += load_as(p.bias, p.bias_type, j + o, left);
      if (p.addend) v += load_as(p.addend, p.addend_type, at, left);
      if (p.y_type == BF16) {
        bf16* const y = static_cast<bf16*>(p.y) + at;
        if (left >= W) store(y, v);
        else store_n(y, v, left);
      } else {
        float* const y = static_cast<float*>(p.y) + at;
        if (left >= W) store(y, v);
        else store_n(y, v, left);
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
void multiply(const Product& p, const char* w, int64_t s0, int64_t s1, const Panel* panels, int64_t count, int thread) {
  constexpr int64_t SHARED = KIND <= INTS4 ? SHARED_TILES_INT : KIND == PAIRS ? SHARED_TILES_PAIR : SHARED_TILES_FLOAT;
  constexpr Kind UNPACKED = KIND == INTS4 ? INTS8 : KIND;
  const int64_t tiles = tiles_of(p.k), strip = tiles * kind_tile_bytes<KIND>(), sets = ceil_div(s1 - s0, S);
  const int64_t block = count > 1 ? least(tiles, SHARED) : tiles;
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
          if (t + n == tiles) finish<S>(p, panel, strip0 * STRIP, sum);
        }
      }
    }
  }
}

// One row (of f32 weights: a few) is bound by memory, which is fastest read as one run: one strip at a time.
template <Kind KIND>
void multiply_kind(const Product& p, const char* w, int64_t s0, int64_t s1, const Panel* panels, int64_t count, int thread) {
  if (count == 1 && (panels[0].width == 1 || KIND == FLOATS)) multiply<KIND, 1>(p, w, s0, s1, panels, count, thread);
  else multiply<KIND, STRIPS>(p, w, s0, s1, panels, count, thread);
}

void multiply_any(const Product& p, const char* w, int64_t s0, int64_t s1, const Panel* panels, int64_t count, int thread) {
  switch (p.kind) {
    case INTS8: return multiply_kind<INTS8>(p, w, s0, s1, panels, count, thread);
    case INTS4: return multiply_kind<INTS4>(p, w, s0, s1, panels, count, thread);
#if defined(__AVX512BF16__)
    case PAIRS: return multiply_kind<PAIRS>(p, w, s0, s1, panels, count, thread);
#endif
    case FLOATS: return multiply_kind<FLOATS>(p, w, s0, s1, panels, count, thread);
    default: return multiply_kind<WIDE>(p, w, s0, s1, panels, count, thread);
  }
}

// Rows that meet one matrix.
struct Segment {
  int64_t row, rows;
  const char* w;
  int64_t panel, panels;   // which panels they are packed in
};

// All products of some segments, at most ROWS rows in all: packs their rows, then multiplies. Tasks are contiguous
// slices of a matrix, a few to each thread, but none too small to be worth waking for.
void run_segments(Product& p, Segment* segments, int64_t count, int64_t rows) {
  const int64_t tiles = tiles_of(p.k), strips = strips_of(p.n), strip = strip_bytes(p.format, p.k), threads = pool_threads();
  const int64_t most = (rows / MOST + count + 1) * int64_t(sizeof(Panel));
  char* const room = static_cast<char*>(pool_scratch(0, 2, most + 64 + rows * tiles * column_bytes(p.kind)));
  Panel* const panels = reinterpret_cast<Panel*>(room);
  int64_t at = 0, n = 0, busy = 0;
  for (int64_t i = 0; i < count; i++) {
    segments[i].panel = n;
    segments[i].panels = cut_panels(segments[i].row, segments[i].rows, tiles, p.kind, panels + n, at);
    n += segments[i].panels;
    busy += segments[i].rows > 0;
  }
  char* const packed = room + ceil_div(most, 64) * 64;
  pack_panels(p, packed, panels, n);
  p.packed = packed;
  const int64_t work = busy * strips * strip * (1 + rows / (4 * (busy > 0 ? busy : 1)));
  int64_t slices = least(threads * (rows > 32 ? 8 : 2), ceil_div(work, SLICE_BYTES));
  slices = ceil_div(slices < threads ? threads : slices, busy > 0 ? busy : 1);   // of a matrix
  const int64_t take = ceil_div(ceil_div(strips, slices), STRIPS) * STRIPS;
  slices = ceil_div(strips, take);
  parallel(count * slices, [&](int64_t task, int thread) {
    const Segment& g = segments[task / slices];
    const int64_t s0 = task % slices * take;
    if (g.rows > 0) multiply_any(p, g.w, s0, least(strips, s0 + take), panels + g.panel, g.panels, thread);
  });
}

Product product_of(const Call& c, const int64_t* sizes) {
  Product p = {};
  p.n = sizes[0];
  p.k = sizes[1];
  p.format = static_cast<int32_t>(sizes[2]);
  p.kind = kind_of(p.format, sizes[3] != 0);
  p.round = sizes[3] != 0 && p.format == BF16X16;
  p.y = c.p[0];
  p.x = c.p[1];
  p.y_type = c.t[0];
  p.x_type = c.t[1];
  p.alpha = static_cast<float>(c.f[0]);
  return p;
}

// P = y[R, N], x[R, K], w, bias?, addend?; I = R, N, K, format, compute; F = alpha
void quant_matmul(const Call& c) {
  const int64_t R = c.i[0];
  Product p = product_of(c, c.i + 1);
  p.bias = c.p[3];
  p.addend = c.p[4];
  p.bias_type = c.t[3];
  p.addend_type = c.t[4];
  if (p.n <= 0) return;
  for (int64_t row = 0; row < R; row += ROWS) {
    Segment all = {row, least(ROWS, R - row), c.ptr<const char>(2), 0, 0};
    run_segments(p, &all, 1, all.rows);
  }
}

// P = y[R, N], x[R, K], w [E, N, K], offsets i32[E + 1]; I = R, E, N, K, format, compute; F = alpha
void quant_grouped_matmul(const Call& c) {
  const int64_t R = c.i[0], E = c.i[1];
  const int32_t* const offsets = c.ptr<const int32_t>(3);
  Product p = product_of(c, c.i + 2);
  for (int64_t e = 0; e <= E; e++)
    if (offsets[e] < (e ? offsets[e - 1] : 0) || offsets[e] > R || (e == 0 && offsets[0] != 0))
      return raise(INDEX_OUT_OF_RANGE, offsets[e], R + 1);
  if (p.n <= 0) return;
  const int64_t matrix = matrix_bytes(p.format, p.n, p.k), used = offsets[E];
  Segment* const segments = static_cast<Segment*>(pool_scratch(0, 3, (E + 1) * int64_t(sizeof(Segment))));
  int64_t e = 0;
  for (int64_t row = 0; row < used;) {
    int64_t count = 0, rows = 0;
    while (rows < ROWS && row + rows < used) {
      while (offsets[e + 1] <= row + rows) e++;
      const int64_t take = least(offsets[e + 1] - row - rows, ROWS - rows);
      segments[count++] = {row + rows, take, c.ptr<const char>(2) + e * matrix, 0, 0};
      rows += take;
    }
    run_segments(p, segments, count, rows);
    row += rows;
  }
  const int64_t left = (R - used) * p.n * bytes_of(p.y_type);
  if (left > 0) std::memset(static_cast<char*>(p.y) + used * p.n * bytes_of(p.y_type), 0, static_cast<size_t>(left));
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(quant_matmul, {"quant_matmul", quant_matmul}, {"quant_grouped_matmul", quant_grouped_matmul})
