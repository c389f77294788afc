// A feed-forward layer in which each row uses one unit of every block (Jaszczur et al. 2021): only the records of chosen
// units are read, and of those the second half only where the ReLU lets the unit through.
#include "../core/pool.h"
#include "quant_scale.h"
#include "quant_units.h"

namespace ansatz {
namespace {

constexpr int64_t ROWS = 64;          // rows at a time: their partial sums are what memory is needed for
constexpr int64_t LEAST_PARTS = 4, MOST_PARTS = 16, PART_BLOCKS = 64;
constexpr int64_t FAR = 4;             // pairs ahead
constexpr int64_t FIRST_BYTES = 1024;  // of the first of a pass
constexpr int64_t HELD = 256 << 10;   // bytes of sums in the L2 cache
constexpr int64_t COLUMNS = 4096;

ANSATZ_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
ANSATZ_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Units {
  int64_t rows, d, padded, A, N;
  int32_t format;
  bool gated;
  int64_t part, record;       // bytes
  const char* records;
  const int32_t* choice;      // [rows, A]
  const float *bias, *gate_bias, *weight;
};

struct Counts { int64_t units, seconds, pairs, second_pairs; };

// A row and the unit it chose in a block, and the unit's value.
struct Pair {
  int64_t unit;
  int32_t block;
  int16_t row;
  float h;
};

// Blocks [a0, a1) for `rows` rows from row r0 on: partial sums to y [rows, padded]. First all hidden values, then what
// those above zero write: in either pass it is known what will be read next.
template <int32_t FORMAT>
void run_blocks(const Units& u, int64_t a0, int64_t a1, int64_t r0, int64_t rows, const UnitRow* x, float* y, int thread,
                Counts& counts) {
  const Q4Table levels;
  alignas(64) float table[16];
  for (int k = 0; k < 16; k++) table[k] = Q4_LEVEL[k];
  float* const room = static_cast<float*>(pool_scratch(thread, 0, (room_floats(u.padded) + u.N + 1) * 4));
  const int64_t pairs = (a1 - a0) * rows;
  Pair* const list = static_cast<Pair*>(pool_scratch(thread, 1, pairs * int64_t(sizeof(Pair))));
  // By unit within a block, so that rows that share one come together: first[c] is where the next row of unit c goes.
  int32_t* const first = reinterpret_cast<int32_t*>(room + room_floats(u.padded));
  int64_t n = 0;
  for (int64_t a = a0; a < a1; a++, n += rows) {
    const int32_t* const chosen = u.choice + r0 * u.A + a;
    if (rows == 1) {
      list[n] = {a * u.N + chosen[0], static_cast<int32_t>(a), 0, 0.0f};
      counts.units++;
      continue;
    }
    std::memset(first, 0, static_cast<size_t>(u.N + 1) * 4);
    for (int64_t r = 0; r < rows; r++) first[chosen[r * u.A] + 1]++;
    for (int64_t c = 0; c < u.N; c++) {
      counts.units += first[c + 1] > 0;
      first[c + 1] += first[c];
    }
    for (int64_t r = 0; r < rows; r++) {
      const int32_t c = chosen[r * u.A];
      list[n + first[c]++] = {a * u.N + c, static_cast<int32_t>(a), static_cast<int16_t>(r), 0.0f};
    }
  }
  counts.pairs += pairs;

  const int64_t first_bytes = (u.gated ? 2 : 1) * u.part, skip = first_bytes;
  const auto record_of = [&](int64_t i) { return u.records + list[i].unit * u.record; };
  // Where pair i + FAR reads; nothing new when there is none, or the pair before it reads the same.
  const auto later = [&](int64_t i, int64_t count, int64_t offset) {
    const int64_t k = i + FAR;
    return record_of(k < count && list[k].unit != list[k - 1].unit ? k : i) + offset;
  };
  for (int64_t i = 0; i < least(FAR, n); i++) fetch_run(record_of(i), least(first_bytes, FIRST_BYTES));
  int64_t active = 0;
  for (int64_t i = 0; i < n;) {
    const int64_t some = n - i >= LANES ? LANES : 1;
    DotLane lane[LANES];
    float value[LANES], gate[LANES];
    for (int64_t l = 0; l < some; l++) lane[l] = {x + list[i + l].row, record_of(i + l), later(i + l, n, 0)};
    if (some == LANES) unit_dots<FORMAT, LANES>(lane, u.padded, levels, room, value);
    else unit_dots<FORMAT, 1>(lane, u.padded, levels, room, value);
    if (u.gated) {
      for (int64_t l = 0; l < some; l++) lane[l].part += u.part, lane[l].ahead += u.part;
      if (some == LANES) unit_dots<FORMAT, LANES>(lane, u.padded, levels, room, gate);
      else unit_dots<FORMAT, 1>(lane, u.padded, levels, room, gate);
    }
    for (int64_t l = 0; l < some; l++) {
      Pair p = list[i + l];
      float v = value[l] + (u.bias ? u.bias[p.unit] : 0.0f);
      const float g = u.gated ? gate[l] + (u.gate_bias ? u.gate_bias[p.unit] : 0.0f) : v;
      if (g <= 0.0f) continue;
      if (u.gated) v *= g;
      p.h = u.weight ? v * u.weight[(r0 + p.row) * u.A + p.block] : v;
      if (active == 0 || list[active - 1].unit != p.unit) {
        counts.seconds++;
        if (counts.seconds <= FAR) fetch_run(u.records + p.unit * u.record + skip, least(u.part, FIRST_BYTES));
      }
      list[active++] = p;
    }
    i += some;
  }
  counts.second_pairs += active;

  // Columns at a time, so that the rows' sums stay in the cache.
  const int64_t columns = rows * u.padded * 4 <= HELD ? u.padded : least(u.padded, (HELD / 4 / rows / TILE + 1) * TILE);
  std::memset(y, 0, static_cast<size_t>(rows * u.padded) * 4);
  for (int64_t k0 = 0; k0 < u.padded; k0 += columns) {
    const int64_t k1 = least(u.padded, k0 + columns);
    for (int64_t i = 0; i < active;) {
      const int64_t some = active - i >= LANES ? LANES : 1;
      AddLane lane[LANES];
      for (int64_t l = 0; l < some; l++) lane[l] = {y + list[i + l].row * u.padded, list[i + l].h, record_of(i + l) + skip, later(i + l, active, skip)};
      if (some == 1) unit_adds<FORMAT, 1, true>(lane, u.padded, k0, k1, table, room);
      else if (rows == 1) unit_adds<FORMAT, LANES, true>(lane, u.padded, k0, k1, table, room);
      else unit_adds<FORMAT, LANES, false>(lane, u.padded, k0, k1, table, room);
      i += some;
    }
  }
}

bool choices_fit(const int32_t* choice, int64_t n, int64_t N) {
  for (int64_t k = 0; k < n; k++)
    if (choice[k] < 0 || choice[k] >= N) {
      raise(INDEX_OUT_OF_RANGE, choice[k], N);
      return false;
    }
  return true;
}

ANSATZ_INLINE vf load_as(const void* p, int32_t t, int64_t at, int64_t n) {
  if (t == BF16) {
    const bf16* x = static_cast<const bf16*>(p) + at;
    return n >= W ? load(x) : load_n(x, n);
  }
  const float* x = static_cast<const float*>(p) + at;
  return n >= W ? load(x) : load_n(x, n);
}

// P = y[rows, d], touched i32[4]?, x[rows, d], choice i32[rows, A], records u8, bias f32[F]?, gate_bias f32[F]?,
//     weight f32[rows, A]?, out_bias f32[d]?, addend[rows, d]?;  I = rows, d, F, N, format, gated;  F = alpha
void sparse_units(const Call& c) {
  Units u = {};
  u.rows = c.i[0];
  u.d = c.i[1];
  u.N = c.i[3];
  u.A = c.i[2] / u.N;
  u.format = static_cast<int32_t>(c.i[4]);
  u.gated = c.i[5] != 0;
  u.padded = padded_width(u.d);
  u.part = part_bytes(u.format, u.d);
  u.record = u.part * (u.gated ? 3 : 2);
  u.choice = c.ptr<const int32_t>(3);
  u.records = c.ptr<const char>(4);
  u.bias = c.ptr<const float>(5);
  u.gate_bias = c.ptr<const float>(6);
  u.weight = c.ptr<const float>(7);
  const float* const out_bias = c.ptr<const float>(8);
  const float alpha = static_cast<float>(c.f[0]);
  if (!choices_fit(u.choice, u.rows * u.A, u.N)) return;
  // Sums are cut by the number of blocks alone, and parts are added in order.
  const int64_t wanted = ceil_div(u.A, PART_BLOCKS), parts = least(u.A, least(MOST_PARTS, wanted < LEAST_PARTS ? LEAST_PARTS : wanted)), most = least(ROWS, u.rows);
  const int64_t row_room = (unit_row_bytes(u.padded) + 63) / 64 * 64;
  float* const sums = static_cast<float*>(pool_scratch(0, 2, (parts * most * u.padded) * 4));
  char* const rooms = static_cast<char*>(pool_scratch(0, 3, most * row_room + MOST_PARTS * int64_t(sizeof(Counts))));
  Counts* const counts = reinterpret_cast<Counts*>(rooms + most * row_room);
  for (int64_t p = 0; p < parts; p++) counts[p] = {};
  for (int64_t r0 = 0; r0 < u.rows; r0 += ROWS) {
    const int64_t rows = least(ROWS, u.rows - r0);
    UnitRow x[ROWS];
    const auto prepare = [&](int64_t r, int) {
      char* const room = rooms + r * row_room;
      if (c.t[2] == BF16) x[r] = make_unit_row(room, c.ptr<const bf16>(2) + (r0 + r) * u.d, u.d, u.format <= UNIT_Q4);
      else x[r] = make_unit_row(room, c.ptr<const float>(2) + (r0 + r) * u.d, u.d, u.format <= UNIT_Q4);
    };
    if (rows * u.d <= 16384)
      for (int64_t r = 0; r < rows; r++) prepare(r, 0);
    else parallel(rows, prepare);
    parallel(parts, [&](int64_t p, int thread) {
      const int64_t a0 = u.A * p / parts, a1 = u.A * (p + 1) / parts;
      float* const y = sums + p * most * u.padded;
      Counts own = {};
      switch (u.format) {
        case UNIT_Q8: run_blocks<UNIT_Q8>(u, a0, a1, r0, rows, x, y, thread, own); break;
        case UNIT_Q4: run_blocks<UNIT_Q4>(u, a0, a1, r0, rows, x, y, thread, own); break;
        case UNIT_BF16: run_blocks<UNIT_BF16>(u, a0, a1, r0, rows, x, y, thread, own); break;
        default: run_blocks<UNIT_F32>(u, a0, a1, r0, rows, x, y, thread, own);
      }
      counts[p].units += own.units;
      counts[p].seconds += own.seconds;
      counts[p].pairs += own.pairs;
      counts[p].second_pairs += own.second_pairs;
    });
    const int64_t pieces = ceil_div(u.d, COLUMNS);
    parallel(rows * pieces, [&](int64_t task, int) {
      const int64_t r = task / pieces, end = least(u.d, (task % pieces + 1) * COLUMNS);
      for (int64_t k = task % pieces * COLUMNS; k < end; k += W) {
        vf v = load(sums + r * u.padded + k);
        for (int64_t p = 1; p < parts; p++) v += load(sums + (p * most + r) * u.padded + k);
        const int64_t at = (r0 + r) * u.d + k, left = end - k;
        v = v * alpha;
        if (out_bias) v += load_as(out_bias, F32, k, left);
        if (c.p[9]) v += load_as(c.p[9], c.t[9], at, left);
        if (c.t[0] == BF16) {
          bf16* const y = c.ptr<bf16>(0) + at;
          if (left >= W) store(y, v);
          else store_n(y, v, left);
        } else {
          float* const y = c.ptr<float>(0) + at;
          if (left >= W) store(y, v);
          else store_n(y, v, left);
        }
      }
    });
  }
  if (int32_t* const touched = c.ptr<int32_t>(1)) {
    Counts all = {};
    for (int64_t p = 0; p < parts; p++) {
      all.units += counts[p].units;
      all.seconds += counts[p].seconds;
      all.pairs += counts[p].pairs;
      all.second_pairs += counts[p].second_pairs;
    }
    touched[0] = static_cast<int32_t>(all.units);
    touched[1] = static_cast<int32_t>(all.seconds);
    touched[2] = static_cast<int32_t>(all.pairs);
    touched[3] = static_cast<int32_t>(all.second_pairs);
  }
}

// 16 units' values [k0, k0 + 64) of one part, from a matrix whose elements are `unit_step` and `step` apart.
template <class T>
void pack_unit_part(const T* w, int64_t unit_step, int64_t step, int64_t units, int32_t format, int64_t d, char* records,
                    int64_t record) {
  const int64_t padded = padded_width(d);
  for (int64_t k0 = 0; k0 < padded; k0 += GROUP) {
    alignas(64) float x[GROUP * STRIP];
    for (int64_t k = 0; k < GROUP; k++)
      for (int64_t r = 0; r < STRIP; r++)
        x[k * STRIP + r] = r < units && k0 + k < d ? to_float(w[r * unit_step + (k0 + k) * step]) : 0.0f;
    GroupCodes q;
    if (format == UNIT_Q8) q8_group(x, nullptr, q);
    if (format == UNIT_Q4) q4_group(x, nullptr, q);
    for (int64_t r = 0; r < units; r++) {
      char* const part = records + r * record;
      for (int64_t k = 0; k < GROUP; k++) {
        const int64_t at = k0 + k;
        const float v = x[k * STRIP + r];
        if (format == UNIT_F32) reinterpret_cast<float*>(part)[at] = v;
        else if (format == UNIT_BF16) reinterpret_cast<bf16*>(part)[at] = to_bf16(v);
        else if (format == UNIT_Q8) reinterpret_cast<int8_t*>(part)[at] = static_cast<int8_t>(q.code[k * STRIP + r] - BIAS);
        else reinterpret_cast<uint8_t*>(part)[unit_q4_at(at)] |= static_cast<uint8_t>(q.code[k * STRIP + r] << unit_q4_shift(at));
      }
      if (format <= UNIT_Q4) reinterpret_cast<bf16*>(part + code_bytes(format, padded))[k0 / GROUP] = to_bf16(q.scale[r]);
    }
  }
}

// P = records u8, up float [F, d], gate float [F, d]?, down float [F, d] or [d, F]; I = F, d, format, down_by_column
void unit_pack(const Call& c) {
  const int64_t F = c.i[0], d = c.i[1];
  const int32_t format = static_cast<int32_t>(c.i[2]);
  const int64_t part = part_bytes(format, d), record = part * (c.p[2] ? 3 : 2);
  parallel(ceil_div(F, STRIP), [&](int64_t task, int) {
    const int64_t first = task * STRIP, units = least(STRIP, F - first);
    char* to = c.ptr<char>(0) + first * record;
    std::memset(to, 0, static_cast<size_t>(units * record));
    for (int m = 1; m <= 3; m++) {
      if (!c.p[m]) continue;
      const bool by_column = m == 3 && c.i[3];
      const int64_t unit_step = by_column ? 1 : d, step = by_column ? F : 1;
      if (c.t[m] == BF16) pack_unit_part(c.ptr<const bf16>(m) + first * unit_step, unit_step, step, units, format, d, to, record);
      else pack_unit_part(c.ptr<const float>(m) + first * unit_step, unit_step, step, units, format, d, to, record);
      to += part;
    }
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(quant_units, {"sparse_units", sparse_units}, {"unit_pack", unit_pack})
