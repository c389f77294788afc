// State of sequences in pages: keys and values with attention over them, and plain vectors a token; `paged_*` in
// docs/kernels.md. Rows of a pass belong to any sequences; a page table says where a sequence's tokens lie.
#include "paged_attention.h"

namespace ansatz {
namespace {

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

template <class F> ANSATZ_INLINE void fetch_slot(const PageHead<F>& h, const PageShape& s, int64_t slot) {
  for (int64_t d = 0; d < s.D; d++) __builtin_prefetch(h.keys + d * s.page + slot, 1);
}

void paged_append(const Call& c) {
  const int64_t R = c.i[0], heads = c.i[1], D = c.i[2], page = c.i[3], max_pages = c.i[4], format = c.i[5];
  const int64_t tok_k = c.i[6], tok_v = c.i[7];
  const PageShape s = page_shape(heads, D, page, format);
  const int32_t *table = c.ptr<const int32_t>(3), *sequence = c.ptr<const int32_t>(4), *position = c.ptr<const int32_t>(5);
  with_format(format, [&](auto f) {
    typedef decltype(f) F;
    // A head's neighbouring tokens share lines of the cache: they go to one thread.
    parallel_range(R * heads, R < 8 ? 8 : R < 64 ? R : 64, [&](int64_t begin, int64_t end, int) {
      for (int64_t task = begin; task < end; task++) {
        const int64_t r = task % R, head = task / R;
        const int64_t n = page_of(table, max_pages, sequence[r], position[r], page);
        if (n < 0) continue;
        const PageHead<F> h = page_head<F>(c.ptr<uint8_t>(0), s, n, head);
        const int64_t slot = position[r] % page, k = r * tok_k + head * D, v = r * tok_v + head * D;
        // One row's key elements lie on a line each: those of the next head are asked for before this one's are written.
        if (R == 1) {
          if (task == begin) fetch_slot(h, s, slot);
          if (task + 1 < end) fetch_slot(page_head<F>(c.ptr<uint8_t>(0), s, n, head + 1), s, slot);
        }
        if (c.t[1] == BF16) append_head(h, s, slot, c.ptr<const bf16>(1) + k, c.ptr<const bf16>(2) + v);
        else append_head(h, s, slot, c.ptr<const float>(1) + k, c.ptr<const float>(2) + v);
      }
    });
  });
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
      const int64_t row = t.row + m / p.group, head = t.head * p.group + m % p.group;
      for (int64_t d = 0; d < s.D; d++) store_one(out + row * p.tok_out + head * s.D + d, zero[0]);
      if (p.lse) p.lse[row * p.H + head] = -__builtin_inff();
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
        for (int64_t m = 0; m < t.M; m++) write_out(p, t, m, t.total + m * s.Dp, t.max[m], t.sum[m], out);
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
        write_out(p, t, m, total, *max, *sum, out);
      }
    });
  });
}

void paged_attention(const Call& c) {
  PagedProblem p = {};
  p.R = c.i[0], p.H = c.i[1], p.group = c.i[1] / c.i[2], p.max_pages = c.i[5];
  p.shape = page_shape(c.i[2], c.i[3], c.i[4], c.i[6]);
  p.tok_q = c.i[7], p.tok_out = c.i[8], p.window = c.i[9], p.bias_length = c.i[10];
  p.block = c.i[11], p.back = c.i[12];
  p.scale = static_cast<float>(c.f[0]);
  p.pool = c.ptr<uint8_t>(2);
  p.bias = c.ptr<const float>(3);
  p.table = c.ptr<const int32_t>(4), p.sequence = c.ptr<const int32_t>(5);
  p.position = c.ptr<const int32_t>(6), p.reach = c.ptr<const int32_t>(7);
  p.lse = c.np > 8 ? c.ptr<float>(8) : nullptr;
  with_format(c.i[6], [&](auto f) {
    typedef decltype(f) F;
    if (c.t[1] == BF16) {
      if (c.t[0] == BF16) attend<F>(p, c.ptr<const bf16>(1), c.ptr<bf16>(0));
      else attend<F>(p, c.ptr<const bf16>(1), c.ptr<float>(0));
    } else if (c.t[0] == BF16) attend<F>(p, c.ptr<const float>(1), c.ptr<bf16>(0));
    else attend<F>(p, c.ptr<const float>(1), c.ptr<float>(0));
  });
}

// One softmax over the keys of two attentions, from their results and log-sum-exps.
template <class In, class Out> void merge(const Call& c, const In* a, const In* b, Out* out) {
  const int64_t n = c.i[0], D = c.i[1];
  const float *lse_a = c.ptr<const float>(3), *lse_b = c.ptr<const float>(4);
  parallel_range(n, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t k = begin; k < end; k++) {
      const float top = lse_a[k] > lse_b[k] ? lse_a[k] : lse_b[k];
      const bool none = top == -__builtin_inff();
      const float x = none ? 0.0f : vexp(splat(lse_a[k] - top))[0], y = none ? 0.0f : vexp(splat(lse_b[k] - top))[0];
      const float scale = none ? 0.0f : 1.0f / (x + y);
      for (int64_t d = 0; d < D; d++)
        store_one(out + k * D + d, (to_float(a[k * D + d]) * x + to_float(b[k * D + d]) * y) * scale);
    }
  });
}

void merge_attention(const Call& c) {
  if (c.t[1] == BF16) {
    if (c.t[0] == BF16) merge(c, c.ptr<const bf16>(1), c.ptr<const bf16>(2), c.ptr<bf16>(0));
    else merge(c, c.ptr<const bf16>(1), c.ptr<const bf16>(2), c.ptr<float>(0));
  } else if (c.t[0] == BF16) merge(c, c.ptr<const float>(1), c.ptr<const float>(2), c.ptr<bf16>(0));
  else merge(c, c.ptr<const float>(1), c.ptr<const float>(2), c.ptr<float>(0));
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
      else convert_run(to, c.ptr<const bf16>(1) + r * width, width);
    }
  });
}

// x, or the pool's vector where the row's sequence has one at its position.
void paged_choose(const Call& c) {
  const int64_t R = c.i[0], width = c.i[1], page = c.i[2], max_pages = c.i[3];
  const int32_t *table = c.ptr<const int32_t>(3), *sequence = c.ptr<const int32_t>(4), *position = c.ptr<const int32_t>(5);
  const int32_t* reach = c.ptr<const int32_t>(6);
  parallel_range(R, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      const float* from = c.ptr<const float>(1) + r * width;
      if (sequence[r] >= 0 && position[r] <= reach[r]) {
        const int64_t n = page_of(table, max_pages, sequence[r], position[r], page);
        if (n < 0) continue;
        from = c.ptr<const float>(2) + (n * page + position[r] % page) * width;
      }
      std::memcpy(c.ptr<float>(0) + r * width, from, static_cast<size_t>(width) * 4);
    }
  });
}

// The vectors of `count` tokens, the first of them `back` before the rows' own; zeros before a sequence's start.
template <class Out> void read_vectors(const Call& c, Out* out) {
  const int64_t R = c.i[0], width = c.i[1], page = c.i[2], max_pages = c.i[3], back = c.i[4], count = c.i[5];
  const int32_t *table = c.ptr<const int32_t>(2), *sequence = c.ptr<const int32_t>(3), *position = c.ptr<const int32_t>(4);
  parallel_range(R * count, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t k = begin; k < end; k++) {
      const int64_t r = k / count, at = position[r] - back + k % count;
      const int64_t n = at < 0 ? -1 : page_of(table, max_pages, sequence[r], at, page);
      const float* from = n < 0 ? nullptr : c.ptr<const float>(1) + (n * page + at % page) * width;
      if (from) convert_run(out + k * width, from, width);
      else std::memset(out + k * width, 0, static_cast<size_t>(width) * sizeof(Out));
    }
  });
}

void paged_read(const Call& c) {
  if (c.t[0] == BF16) read_vectors(c, c.ptr<bf16>(0));
  else read_vectors(c, c.ptr<float>(0));
}

}  // namespace
}  // namespace ansatz

ANSATZ_KERNELS(paged, {"paged_append", paged_append}, {"paged_attention", paged_attention},
               {"paged_write", paged_write}, {"paged_read", paged_read},
               {"paged_choose", paged_choose}, {"merge_attention", merge_attention})
