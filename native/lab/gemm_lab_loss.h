// The fused loss's part of gemm_lab.cpp: a float64 reference of its definition, and timing.
#pragma once

static void check_loss() {
  const int64_t rows = pick(0, 4) ? pick(1, 90) : pick(0, 1500), d = pick(1, 80), V = pick(1, 400);
  const bool compute = rng() & 1, want_dh = pick(0, 3), want_dw = pick(0, 3), has_scale = rng() & 1;
  const int32_t ht = rng() & 1 ? BF16 : F32, wt = rng() & 1 ? BF16 : F32;
  const double zcoef = pick(0, 1) ? 0 : 0.01, logit_scale = pick(0, 1) ? 1 : 0.7;
  Array h(rows * d, ht), w(V * d, wt), target(rows, F32), rowscale(rows, F32);
  std::vector<int32_t> t(size_t(rows) + 1);
  for (int64_t r = 0; r < rows; r++) t[size_t(r)] = pick(0, 5) ? int32_t(pick(0, V - 1)) : -100;
  if (rows) std::memcpy(target.data(), t.data(), size_t(rows) * 4);
  for (int64_t r = 0; r < rows; r++) rowscale.set(r, pick(0, 4) ? 1.0 / double(rows) : 0);
  std::vector<double> loss(size_t(rows), 0), dh(size_t(rows * d), 0), dw(size_t(V * d), 0), x(static_cast<size_t>(V));
  const auto hv = [&](int64_t r, int64_t k) { return rounded(h.get(r * d + k), compute); };
  const auto wv = [&](int64_t v, int64_t k) { return rounded(w.get(v * d + k), compute); };
  for (int64_t r = 0; r < rows; r++) {
    if (t[size_t(r)] == -100) continue;
    double top = -1e300, sum = 0;
    for (int64_t v = 0; v < V; v++) {
      double s = 0;
      for (int64_t k = 0; k < d; k++) s += hv(r, k) * wv(v, k);
      x[size_t(v)] = s * logit_scale;
      top = std::fmax(top, x[size_t(v)]);
    }
    for (double v : x) sum += std::exp(v - top);
    const double lse = top + std::log(sum), scale = (has_scale ? rowscale.get(r) : 1) * logit_scale;
    loss[size_t(r)] = lse - x[size_t(t[size_t(r)])] + zcoef * lse * lse;
    for (int64_t v = 0; v < V; v++) {
      const double g = scale * (std::exp(x[size_t(v)] - lse) * (1 + 2 * zcoef * lse) - (v == t[size_t(r)]));
      for (int64_t k = 0; k < d; k++) dh[size_t(r * d + k)] += g * wv(v, k), dw[size_t(v * d + k)] += g * hv(r, k);
    }
  }
  double dh_max = 1e-30, dw_max = 1e-30;
  for (double v : dh) dh_max = std::fmax(dh_max, std::fabs(v));
  for (double v : dw) dw_max = std::fmax(dw_max, std::fabs(v));
  const double tolerance = compute || ht == BF16 ? 1e-2 : 2e-5;
  for (const Level& level : levels()) {
    if (!level.runs) continue;
    std::string first;
    for (int threads : {1, 2}) {
      pool_resize(threads);
      Array l(rows, F32), gh(rows * d, ht), gw(V * d, F32);
      call(level.loss, {&l, want_dh ? &gh : nullptr, want_dw ? &gw : nullptr, &h, &w, &target, has_scale ? &rowscale : nullptr},
           {rows, d, V, -100, compute}, {zcoef, logit_scale});
      char what[160];
      std::snprintf(what, sizeof what, "%s loss rows %d d %d V %d types %d%d compute %d thr %d", level.name, int(rows), int(d),
                    int(V), ht, wt, compute, threads);
      bool ok = l.tail_intact() && gh.tail_intact() && gw.tail_intact();
      for (int64_t r = 0; r < rows; r++) ok = ok && std::fabs(l.get(r) - loss[size_t(r)]) <= 1e-4 + 3e-5 * std::fabs(loss[size_t(r)]);
      for (int64_t k = 0; want_dh && k < rows * d; k++) ok = ok && std::fabs(gh.get(k) - dh[size_t(k)]) <= tolerance * dh_max;
      for (int64_t k = 0; want_dw && k < V * d; k++) ok = ok && std::fabs(gw.get(k) - dw[size_t(k)]) <= tolerance * dw_max;
      expect(ok, what);
      const std::string bits = std::string(l.bytes.begin(), l.bytes.end()) + std::string(gh.bytes.begin(), gh.bytes.begin() + (want_dh ? rows * d * gh.size() : 0)) +
                               std::string(gw.bytes.begin(), gw.bytes.begin() + (want_dw ? V * d * 4 : 0));
      if (threads == 1) first = bits;
      expect(bits == first, std::string(what) + ": differs from one thread");
    }
  }
}

static void bench_loss(const Level& level) {
  if (only && !std::strstr("linear_cross_entropy", only)) return;
  const int64_t rows = 2048, d = 256, V = 4096;
  for (int gradient = 0; gradient < 2; gradient++) {
    Array h(rows * d, BF16), w(V * d, F32), target(rows, F32), l(rows, F32), dh(rows * d, BF16), dw(V * d, F32);
    for (int64_t k = 0; k < V * d; k++) w.set(k, 0.05 * gauss());
    std::vector<int32_t> t(static_cast<size_t>(rows));
    for (auto& v : t) v = int32_t(pick(0, V - 1));
    std::memcpy(target.data(), t.data(), size_t(rows) * 4);
    double best = 1e9;
    pool_keep_hot(true);
    for (int k = 0; k < 40; k++) {
      const double start = seconds();
      call(level.loss, {&l, gradient ? &dh : nullptr, gradient ? &dw : nullptr, &h, &w, &target, nullptr}, {rows, d, V, -100, 1}, {0.0, 1.0});
      best = std::fmin(best, seconds() - start);
    }
    pool_keep_hot(false);
    std::printf("%-9s linear_cross_entropy %s rows %d d %d V %d  %8.1f GFLOP/s  %9.1f us\n", level.name, gradient ? "fwd+bwd" : "forward",
                int(rows), int(d), int(V), (gradient ? 6e-9 : 2e-9) * double(rows * d * V) / best, best * 1e6);
  }
}
