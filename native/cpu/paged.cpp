// State of sequences in pages: keys and values with attention over them, and plain vectors a token; `paged_*` in
// docs/kernels.md. Rows of a pass belong to any sequences; a page table says where a sequence's tokens lie.
#include "paged_attention.h"

namespace ansatz {
namespace {

// The page of a row's token, or -1 for rows that stand for nothing.
ANSATZ_INLINE int64_t page_of(const int32_t* table, int64_t max_pages, int64_t sequence, int64_t position, int64_t page) {
  if (sequence < 0) return -1;
  const int64_t n = position / page;
  if (position < 0 || n >= max_pages) {
    raise(INDEX_OUT_OF_RANGE, position, max_pages * page);
    return -1;
  }
  return table[sequence * max_pages + n];
}

template <class F, class In>
void append_head(const PageHead<F>& h, const PageShape& s, int64_t slot, const In* k, const In* v) {
  float key_scale = 1.0f, value_scale = 1.0f;
  if (F::scaled) {
    float top_k = 0.0f, top_v = 0.0f;
    for (int64_t d = 0; d < s.D; d++) {
      const float a = __builtin_fabsf(to_float(k[d])), b = __builtin_fabsf(to_float(v[d]));
      top_k = a > top_k ? a : top_k, top_v = b > top_v ? b : top_v;
    }
    h.scales[slot] = top_k / 127.0f, h.scales[s.page + slot] = top_v / 127.0f;
    key_scale = top_k > 0.0f ? 127.0f / top_k : 0.0f, value_scale = top_v > 0.0f ? 127.0f / top_v : 0.0f;
  }
  for (int64_t d = 0; d < s.D; d++) {
    h.keys[d * s.page + slot] = F::make(to_float(k[d]), key_scale);
    h.values[slot * s.Dp + d] = F::make(to_float(v[d]), value_scale);
  }
}

void paged_append(const Call& c) {
  const int64_t R = c.i[0], heads = c.i[1], D = c.i[2], page = c.i[3], max_pages = c.i[4], format = c.i[5];
  const int64_t tok_k = c.i[6], tok_v = c.i[7];
  const PageShape s = page_shape(heads, D, page, format);
  const int32_t *table = c.ptr<const int32_t>(3), *sequence = c.ptr<const int32_t>(4), *position = c.ptr<const int32_t>(5);
  with_format(format, [&](auto f) {
    typedef decltype(f) F;
    parallel_range(R, 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; r++) {
        const int64_t n = page_of(table, max_pages, sequence[r], position[r], page);
        if (n < 0) continue;
        for (int64_t head = 0; head < heads; head++) {
          const PageHead<F> h = page_head<F>(c.ptr<uint8_t>(0), s, n, head);
          const int64_t slot = position[r] % page, k = r * tok_k + head * D, v = r * tok_v + head * D;
          if (c.t[1] == BF16) append_head(h, s, slot, c.ptr<const bf16>(1) + k, c.ptr<const bf16>(2) + v);
          else append_head(h, s, slot, c.ptr<const float>(1) + k, c.ptr<const float>(2) + v);
        }
      }
    });
  });
}

template <class In> void read_queries(const PagedProblem& p, const Tile& t, const In* q) {
  for (int64_t m = 0; m < t.M; m++) {
    const In* from = q + (t.row + m / p.group) * p.tok_q + (t.head * p.group + m % p.group) * p.shape.D;
    for (int64_t d = 0; d < p.shape.D; d++) t.q[m * p.shape.D + d] = to_float(from[d]) * p.scale;
  }
}

// A tile's memory: queries, scores, sums; widened pages.
inline void carve(const PagedProblem& p, Tile& t, int thread, int64_t most) {
  const PageShape& s = p.shape;
  float* at = static_cast<float*>(pool_scratch(thread, 1, (most * (s.D + s.page + 2 * s.Dp + 5) + 64) * 4));
  t.part = at, at += most * s.Dp;
  t.total = at, at += most * s.Dp;
  t.scores = at, at += most * s.page;
  t.q = at, at += most * s.D;
  t.part_max = at, at += most;
  t.part_sum = at, at += most;
  t.max = at, at += most;
  t.sum = at;
  float* wide = static_cast<float*>(pool_scratch(thread, 2, (s.D + s.Dp) * s.page * 4));
  t.keys = wide, t.values = wide + s.D * s.page;
}

template <class Out> void write_out(const PagedProblem& p, const Tile& t, int64_t m, const float* total, float sum, Out* out) {
  Out* to = out + (t.row + m / p.group) * p.tok_out + (t.head * p.group + m % p.group) * p.shape.D;
  const float scale = sum > 0.0f ? 1.0f / sum : 0.0f;
  for (int64_t d = 0; d < p.shape.D; d++) store_one(to + d, total[d] * scale);
}

// f(tile) for every run of rows of one sequence among rows [begin, end).
template <class Fn> void runs(const PagedProblem& p, int64_t begin, int64_t end, int64_t head, const Fn& f) {
  for (int64_t r = begin; r < end;) {
    int64_t n = r + 1;
    while (n < end && p.sequence[n] == p.sequence[r]) n++;
    Tile t = {};
    t.row = r, t.rows = n - r, t.head = head, t.M = (n - r) * p.group;
    t.pages = p.sequence[r] < 0 ? nullptr : p.table + p.sequence[r] * p.max_pages;
    f(t);
    r = n;
  }
}

template <class F, class In, class Out> void attend(const PagedProblem& p, const In* q, Out* out) {
  const PageShape& s = p.shape;
  int64_t pages = 0;
  for (int64_t r = 0; r < p.R; r++) {
    if (p.sequence[r] < 0) continue;
    if (p.reach[r] < 0 || p.reach[r] >= p.max_pages * s.page) {
      raise(INDEX_OUT_OF_RANGE, p.reach[r], p.max_pages * s.page);
      return;
    }
    const int64_t n = p.reach[r] / s.page + 1;
    pages = n > pages ? n : pages;
  }
  const int64_t splits = (pages + SPLIT_PAGES - 1) / SPLIT_PAGES;
  // Tiles may have any size: it changes nothing but the time.
  const int threads = pool_threads();
  int64_t rows = 32 / p.group;
  rows = rows < 1 ? 1 : rows;
  while (rows > 1 && (p.R + rows - 1) / rows * s.heads < 4 * threads) rows = (rows + 1) / 2;
  const int64_t tiles = (p.R + rows - 1) / rows, most = rows * p.group;
  const auto blank = [&](const Tile& t) {
    const float zero[1] = {0.0f};
    for (int64_t m = 0; m < t.M; m++) {
      Out* to = out + (t.row + m / p.group) * p.tok_out + (t.head * p.group + m % p.group) * s.D;
      for (int64_t d = 0; d < s.D; d++) store_one(to + d, zero[0]);
    }
  };
  const auto last_page = [&](int64_t split) {
    const int64_t end = (split + 1) * SPLIT_PAGES;
    return (end < pages ? end : pages) - 1;
  };

  if (tiles * s.heads >= 2 * threads || splits <= 1) {
    parallel(tiles * s.heads, [&](int64_t task, int thread) {
      const int64_t tile = task / s.heads, begin = tile * rows, end = begin + rows < p.R ? begin + rows : p.R;
      runs(p, begin, end, task % s.heads, [&](Tile& t) {
        if (!t.pages) return blank(t);
        carve(p, t, thread, most);
        float* alpha = static_cast<float*>(pool_scratch(thread, 3, most * 4));
        read_queries(p, t, q);
        for (int64_t n = 0; n < splits; n++) {
          attend_split<F>(p, t, n * SPLIT_PAGES, last_page(n), alpha);
          for (int64_t m = 0; m < t.M; m++)
            merge_part(t.total + m * s.Dp, t.max + m, t.sum + m, t.part + m * s.Dp, t.part_max[m], t.part_sum[m], s.Dp, n == 0);
        }
        for (int64_t m = 0; m < t.M; m++) write_out(p, t, m, t.total + m * s.Dp, t.sum[m], out);
      });
    });
    return;
  }

  // Few rows with a long past: every split is a task, its sums wait for their turn.
  const int64_t record = s.Dp + 2;
  float* parts = static_cast<float*>(pool_scratch(0, 0, p.R * p.H * splits * record * 4));
  const auto part_at = [&](const Tile& t, int64_t m, int64_t split) {
    return parts + (((t.row + m / p.group) * p.H + t.head * p.group + m % p.group) * splits + split) * record;
  };
  const int64_t each = s.heads * splits;
  parallel(tiles * each, [&](int64_t task, int thread) {
    const int64_t begin = task / each * rows, end = begin + rows < p.R ? begin + rows : p.R, split = task % splits;
    runs(p, begin, end, task % each / splits, [&](Tile& t) {
      if (!t.pages) return;
      carve(p, t, thread, most);
      float* alpha = static_cast<float*>(pool_scratch(thread, 3, most * 4));
      read_queries(p, t, q);
      attend_split<F>(p, t, split * SPLIT_PAGES, last_page(split), alpha);
      for (int64_t m = 0; m < t.M; m++) {
        float* to = part_at(t, m, split);
        std::memcpy(to, t.part + m * s.Dp, static_cast<size_t>(s.Dp) * 4);
        to[s.Dp] = t.part_max[m], to[s.Dp + 1] = t.part_sum[m];
      }
    });
  });
  parallel(tiles * s.heads, [&](int64_t task, int thread) {
    const int64_t tile = task / s.heads, begin = tile * rows, end = begin + rows < p.R ? begin + rows : p.R;
    runs(p, begin, end, task % s.heads, [&](Tile& t) {
      if (!t.pages) return blank(t);
      carve(p, t, thread, most);
      for (int64_t m = 0; m < t.M; m++) {
        float *total = t.total + m * s.Dp, *max = t.max + m, *sum = t.sum + m;
        for (int64_t n = 0; n < splits; n++) {
          const float* part = part_at(t, m, n);
          merge_part(total, max, sum, part, part[s.Dp], part[s.Dp + 1], s.Dp, n == 0);
        }
        write_out(p, t, m, total, *sum, out);
      }
    });
  });
}

void paged_attention(const Call& c) {
  PagedProblem p;
  p.R = c.i[0], p.H = c.i[1], p.group = c.i[1] / c.i[2], p.max_pages = c.i[5];
  p.shape = page_shape(c.i[2], c.i[3], c.i[4], c.i[6]);
  p.tok_q = c.i[7], p.tok_out = c.i[8], p.window = c.i[9], p.bias_length = c.i[10];
  p.scale = static_cast<float>(c.f[0]);
  p.pool = c.ptr<uint8_t>(2);
  p.bias = c.ptr<const float>(3);
  p.table = c.ptr<const int32_t>(4), p.sequence = c.ptr<const int32_t>(5);
  p.position = c.ptr<const int32_t>(6), p.reach = c.ptr<const int32_t>(7);
  with_format(c.i[6], [&](auto f) {
    typedef decltype(f) F;
    if (c.t[1] == BF16) {
      if (c.t[0] == BF16) attend<F>(p, c.ptr<const bf16>(1), c.ptr<bf16>(0));
      else attend<F>(p, c.ptr<const bf16>(1), c.ptr<float>(0));
    } else if (c.t[0] == BF16) attend<F>(p, c.ptr<const float>(1), c.ptr<bf16>(0));
    else attend<F>(p, c.ptr<const float>(1), c.ptr<float>(0));
  });
}

// Plain vectors a token, f32 [pages, page, width]: writes those of the rows' tokens.
void paged_write(const Call& c) {
  const int64_t R = c.i[0], width = c.i[1], page = c.i[2], max_pages = c.i[3];
  const int32_t *table = c.ptr<const int32_t>(2), *sequence = c.ptr<const int32_t>(3), *position = c.ptr<const int32_t>(4);
  parallel_range(R, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      const int64_t n = page_of(table, max_pages, sequence[r], position[r], page);
      if (n < 0) continue;
      float* to = c.ptr<float>(0) + (n * page + position[r] % page) * width;
      if (c.t[1] == F32) std::memcpy(to, c.ptr<const float>(1) + r * width, static_cast<size_t>(width) * 4);
      else
        for (int64_t k = 0; k < width; k++) to[k] = to_float(c.ptr<const bf16>(1)[r * width + k]);
    }
  });
}

// The vectors that lie `back` tokens before the rows' own; zeros before a sequence's start.
void paged_read(const Call& c) {
  const int64_t R = c.i[0], width = c.i[1], page = c.i[2], max_pages = c.i[3], back = c.i[4];
  const int32_t *table = c.ptr<const int32_t>(2), *sequence = c.ptr<const int32_t>(3), *position = c.ptr<const int32_t>(4);
  parallel_range(R, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      const int64_t at = static_cast<int64_t>(position[r]) - back;
      const int64_t n = at < 0 ? -1 : page_of(table, max_pages, sequence[r], at, page);
      const float* from = n < 0 ? nullptr : c.ptr<const float>(1) + (n * page + at % page) * width;
      for (int64_t k = 0; k < width; k++) {
        const float x = from ? from[k] : 0.0f;
        if (c.t[0] == F32) c.ptr<float>(0)[r * width + k] = x;
        else c.ptr<bf16>(0)[r * width + k] = to_bf16(x);
      }
    }
  });
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(paged, {"paged_append", paged_append}, {"paged_attention", paged_attention},
               {"paged_write", paged_write}, {"paged_read", paged_read})
