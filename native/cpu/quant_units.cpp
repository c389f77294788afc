// A feed-forward layer in which each row uses one unit of every block (Jaszczur et al. 2021): only the records of chosen
// units are read, and of those the second half only where the ReLU lets the unit through.
#include "../core/pool.h"
#include "quant_scale.h"
#include "quant_units.h"

namespace ansatz {
namespace {

constexpr int64_t ROWS = 64;          // rows at a time: their partial sums are what memory is needed for
constexpr int64_t LEAST_PARTS = 4, MOST_PARTS = 16, PART_BLOCKS = 32;
constexpr int64_t FAR = 4;             // pairs ahead
constexpr int64_t FIRST_BYTES = 1024;  // of the first of a pass
constexpr int64_t CHUNK_BYTES = 512 << 10;   // of records in the L2 cache
constexpr int64_t LEAST_CHUNK = 8;           // blocks: enough for a row to have several active units
constexpr int64_t COLUMNS = 4096;

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

// Units that any of the groups of rows has read, and those whose second part was needed; seen [groups][n].
void count_seen(const uint8_t* seen, int64_t groups, int64_t n, Counts& to) {
  for (int64_t k = 0; k < n; k += 8) {
    const size_t bytes = static_cast<size_t>(least(8, n - k));
    uint64_t all = 0;
    for (int64_t g = 0; g < groups; g++) {
      uint64_t some = 0;
      std::memcpy(&some, seen + g * n + k, bytes);
      all |= some;
    }
    to.units += __builtin_popcountll(all & 0x0101010101010101u);
    to.seconds += __builtin_popcountll(all & 0x0202020202020202u);
  }
}

// A row and the unit it chose in a block, and the unit's value.
struct Pair {
  int64_t unit;
  int32_t block;
  int16_t row;
  float h;
};

// Adds what the active pairs [i, end) of one row write.
template <int32_t FORMAT, class Later>
ANSATZ_INLINE void add_row(const Units& u, const Pair* list, int64_t i, int64_t end, float* y, const float* table, float* room, const Later& later) {
  const int64_t skip = (u.gated ? 2 : 1) * u.part;
  while (i < end) {
    AddLane lane[LANES];
    const int64_t some = least(LANES, end - i);
    for (int64_t l = 0; l < some; l++) lane[l] = {list[i + l].h, u.records + list[i + l].unit * u.record + skip, later(i + l)};
    if (some == 4) unit_adds<FORMAT, 4>(lane, u.padded, y, table, room);
    else if (some == 3) unit_adds<FORMAT, 3>(lane, u.padded, y, table, room);
    else if (some == 2) unit_adds<FORMAT, 2>(lane, u.padded, y, table, room);
    else unit_adds<FORMAT, 1>(lane, u.padded, y, table, room);
    i += some;
  }
}

// Blocks [a0, a1) for `rows` rows from row r0 on: partial sums to y [rows, padded]. A chunk of blocks at a time, whose
// records stay in the cache for the rows that share them; within it row by row, so that several units are added to a row's
// sums at once. First all hidden values, then what those above zero write: in either pass it is known what will be read next.
template <int32_t FORMAT>
void run_blocks(const Units& u, int64_t a0, int64_t a1, int64_t r0, int64_t rows, const UnitRow* x, float* y, int thread,
                uint8_t* seen, Counts& counts) {
  const Q4Table levels;
  alignas(64) float table[16];
  for (int k = 0; k < 16; k++) table[k] = Q4_LEVEL[k];
  const int64_t blocks = a1 - a0, pairs = blocks * rows;
  float* const room = static_cast<float*>(pool_scratch(thread, 0, room_floats(u.padded) * 4));
  Pair* const list = static_cast<Pair*>(pool_scratch(thread, 1, pairs * int64_t(sizeof(Pair))));
  const int64_t fit = CHUNK_BYTES / (u.record * least(u.N, rows)), chunk = rows == 1 ? blocks : fit < LEAST_CHUNK ? LEAST_CHUNK : fit;
  int64_t n = 0;
  for (int64_t c0 = a0; c0 < a1; c0 += chunk) {
    const int64_t c1 = least(a1, c0 + chunk);
    for (int64_t r = 0; r < rows; r++) {
      const int32_t* const chosen = u.choice + (r0 + r) * u.A;
      for (int64_t a = c0; a < c1; a++) list[n++] = {a * u.N + chosen[a], static_cast<int32_t>(a), static_cast<int16_t>(r), 0.0f};
    }
  }
  // Which units are read: their first parts, their second ones.
  if (seen) {
    std::memset(seen, 0, static_cast<size_t>(blocks * u.N));
    for (int64_t i = 0; i < n; i++) seen[list[i].unit - a0 * u.N] = 1;
  }
  counts.pairs += pairs;

  const int64_t first_bytes = (u.gated ? 2 : 1) * u.part, skip = first_bytes;
  const auto record_of = [&](int64_t i) { return u.records + list[i].unit * u.record; };
  const auto later = [&](int64_t i, int64_t end, int64_t offset) { return record_of(i + FAR < end ? i + FAR : i) + offset; };
  for (int64_t i = 0; i < least(FAR, n); i++) fetch_run(record_of(i), least(first_bytes, FIRST_BYTES));
  int64_t active = 0;
  for (int64_t i = 0; i < n;) {
    int64_t some = 1;
    while (some < LANES && i + some < n && list[i + some].row == list[i].row) some++;
    if (some < LANES) some = 1;
    DotLane lane[LANES];
    float value[LANES], gate[LANES];
    const UnitRow& own = x[list[i].row];
    for (int64_t l = 0; l < some; l++) lane[l] = {record_of(i + l), later(i + l, n, 0)};
    if (some == LANES) unit_dots<FORMAT, LANES>(own, lane, u.padded, levels, room, value);
    else unit_dots<FORMAT, 1>(own, lane, u.padded, levels, room, value);
    if (u.gated) {
      for (int64_t l = 0; l < some; l++) lane[l].part += u.part, lane[l].ahead += u.part;
      if (some == LANES) unit_dots<FORMAT, LANES>(own, lane, u.padded, levels, room, gate);
      else unit_dots<FORMAT, 1>(own, lane, u.padded, levels, room, gate);
    }
    for (int64_t l = 0; l < some; l++) {
      Pair p = list[i + l];
      float v = value[l] + (u.bias ? u.bias[p.unit] : 0.0f);
      const float g = u.gated ? gate[l] + (u.gate_bias ? u.gate_bias[p.unit] : 0.0f) : v;
      if (g <= 0.0f) continue;
      if (u.gated) v *= g;
      p.h = u.weight ? v * u.weight[(r0 + p.row) * u.A + p.block] : v;
      if (seen) seen[p.unit - a0 * u.N] = 3;
      if (active < FAR) fetch_run(u.records + p.unit * u.record + skip, least(u.part, FIRST_BYTES));
      list[active++] = p;
    }
    i += some;
  }
  counts.second_pairs += active;

  std::memset(y, 0, static_cast<size_t>(rows * u.padded) * 4);
  for (int64_t i = 0; i < active;) {
    int64_t end = i + 1;
    while (end < active && list[end].row == list[i].row) end++;
    add_row<FORMAT>(u, list, i, end, y + list[i].row * u.padded, table, room, [&](int64_t k) { return later(k, active, skip); });
    i = end;
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

// y[r, k0 to k1) from a row's sums, those of its `parts` parts `step` floats apart and added in order.
void write_row(const Call& c, const Units& u, int64_t r, int64_t k0, int64_t k1, const float* sums, int64_t parts, int64_t step) {
  const float* const out_bias = c.ptr<const float>(8);
  const float alpha = static_cast<float>(c.f[0]);
  for (int64_t k = k0; k < k1; k += W) {
    vf v = load(sums + k);
    for (int64_t p = 1; p < parts; p++) v += load(sums + p * step + k);
    const int64_t at = r * u.d + k, left = k1 - k;
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
  if (!choices_fit(u.choice, u.rows * u.A, u.N)) return;
  // Sums are cut by the number of blocks alone, and parts are added in order.
  const int64_t wanted = ceil_div(u.A, PART_BLOCKS), parts = least(u.A, least(MOST_PARTS, wanted < LEAST_PARTS ? LEAST_PARTS : wanted));
  const int64_t most = least(ROWS, u.rows), threads = pool_threads();
  // Many rows are shared out, each with all of its parts: what one core writes for another arrives late.
  const bool by_rows = most >= 2 * threads;
  const int64_t groups = by_rows ? threads : 1, each = ceil_div(most, groups), tasks = by_rows ? groups : parts;
  const bool counted = c.p[1] && u.rows > 1;
  float* const sums = static_cast<float*>(pool_scratch(0, 2, (by_rows ? most + groups * each : parts * most) * u.padded * 4));
  const int64_t row_room = (unit_row_bytes(u.padded) + 63) / 64 * 64, counts_bytes = (tasks + parts) * int64_t(sizeof(Counts));
  char* const rooms = static_cast<char*>(pool_scratch(0, 3, most * row_room + counts_bytes + (counted ? groups * u.A * u.N : 0)));
  Counts *const counts = reinterpret_cast<Counts*>(rooms + most * row_room), *const unions = counts + tasks;
  uint8_t* const seen = reinterpret_cast<uint8_t*>(rooms + most * row_room + counts_bytes);
  std::memset(counts, 0, static_cast<size_t>(counts_bytes));
  for (int64_t r0 = 0; r0 < u.rows; r0 += ROWS) {
    const int64_t rows = least(ROWS, u.rows - r0);
    UnitRow x[ROWS];
    const auto prepare = [&](int64_t r, int) {
      char* const room = rooms + r * row_room;
      if (c.t[2] == BF16) x[r] = make_unit_row(room, c.ptr<const bf16>(2) + (r0 + r) * u.d, u.d, u.format <= UNIT_Q4);
      else x[r] = make_unit_row(room, c.ptr<const float>(2) + (r0 + r) * u.d, u.d, u.format <= UNIT_Q4);
    };
    // Part p of rows [first, first + some) to y.
    const auto part = [&](int64_t p, int64_t first, int64_t some, float* y, int64_t group, int thread, Counts& to) {
      const int64_t a0 = u.A * p / parts, a1 = u.A * (p + 1) / parts;
      uint8_t* const own = counted ? seen + (a0 * groups + (a1 - a0) * group) * u.N : nullptr;
      switch (u.format) {
        case UNIT_Q8: return run_blocks<UNIT_Q8>(u, a0, a1, r0 + first, some, x + first, y, thread, own, to);
        case UNIT_Q4: return run_blocks<UNIT_Q4>(u, a0, a1, r0 + first, some, x + first, y, thread, own, to);
        case UNIT_BF16: return run_blocks<UNIT_BF16>(u, a0, a1, r0 + first, some, x + first, y, thread, own, to);
        default: return run_blocks<UNIT_F32>(u, a0, a1, r0 + first, some, x + first, y, thread, own, to);
      }
    };
    if (by_rows) {
      parallel(groups, [&](int64_t group, int thread) {
        const int64_t first = rows * group / groups, some = rows * (group + 1) / groups - first;
        float *const total = sums + first * u.padded, *const next = sums + (most + group * each) * u.padded;
        for (int64_t r = first; r < first + some; r++) prepare(r, thread);
        for (int64_t p = 0; p < parts; p++) {
          part(p, first, some, p == 0 ? total : next, group, thread, counts[group]);
          for (int64_t k = 0; p > 0 && k < some * u.padded; k += W) store(total + k, load(total + k) + load(next + k));
        }
        for (int64_t r = 0; r < some; r++) write_row(c, u, r0 + first + r, 0, u.d, total + r * u.padded, 1, 0);
      });
    } else {
      if (rows * u.d <= 16384)
        for (int64_t r = 0; r < rows; r++) prepare(r, 0);
      else parallel(rows, prepare);
      parallel(parts, [&](int64_t p, int thread) { part(p, 0, rows, sums + p * most * u.padded, 0, thread, counts[p]); });
      const int64_t pieces = ceil_div(u.d, COLUMNS);
      parallel(rows * pieces, [&](int64_t task, int) {
        const int64_t r = task / pieces, k0 = task % pieces * COLUMNS;
        write_row(c, u, r0 + r, k0, least(u.d, k0 + COLUMNS), sums + r * u.padded, parts, most * u.padded);
      });
    }
    if (counted)
      parallel(parts, [&](int64_t p, int) {
        const int64_t a0 = u.A * p / parts, a1 = u.A * (p + 1) / parts;
        count_seen(seen + a0 * groups * u.N, groups, (a1 - a0) * u.N, unions[p]);
      });
  }
  if (int32_t* const touched = c.ptr<int32_t>(1)) {
    Counts all = {};
    for (int64_t p = 0; p < tasks + parts; p++) {
      all.units += counts[p].units;
      all.seconds += counts[p].seconds;
      all.pairs += counts[p].pairs;
      all.second_pairs += counts[p].second_pairs;
    }
    // One row shares nothing.
    touched[0] = static_cast<int32_t>(counted ? all.units : all.pairs);
    touched[1] = static_cast<int32_t>(counted ? all.seconds : all.second_pairs);
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
