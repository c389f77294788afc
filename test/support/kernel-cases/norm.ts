// Cases of RMS and layer normalisation.
import { floatDtype, gaussian, input, makeCase, output, type Rng, stored, tolerance } from './build.ts';
import type { CaseGenerator, TensorSpec } from './types.ts';

const EPS = 1e-5;

function shapes(rng: Rng): number[][] {
  const narrow = Array.from({ length: 40 }, (_, k) => [rng.int(1, 6), k + 1]);
  return [...narrow, [0, 8], [1, 64], [33, 65], [3, 5003], [130, 256], [517, 200], [1, 1000], [257, 3]];
}

/** Normally distributed rows around a common offset, which the mean must take away. */
const rowsOf = (rng: Rng, rows: number, d: number, centre: number): TensorSpec =>
  input(floatDtype(rng), rows * d, () => centre + rng.normal());

const weight = (rng: Rng, d: number): TensorSpec | null =>
  rng.chance(0.25) ? null : input('f32', d, () => 1 + 0.3 * rng.normal());

const forward: CaseGenerator = (kernel, rng) =>
  shapes(rng).map(([rows, d]) => {
    const layer = kernel === 'layer_norm';
    const x = rowsOf(rng, rows, d, layer ? rng.pick([0, 0, 3]) : 0);
    const y = output(floatDtype(rng), rows * d);
    const stats = Array.from({ length: layer ? 2 : 1 }, () => output('f32', rows));
    const w = weight(rng, d);
    const p = layer ? [y, ...stats, x, w, weight(rng, d)] : [y, ...stats, x, w];
    // With d = 1 a layer norm divides rounding noise by sqrt(eps); wider rows are tame.
    return makeCase(kernel, {
      p,
      i: [rows, d],
      f: [EPS],
      tolerance: tolerance(1e-5, layer && d < 4 ? 1e-3 : 1e-5, 3e-5),
    });
  });

/** mean and 1/sqrt(variance + eps) of each row, as the forward pass would have stored them. */
function statistics(x: TensorSpec, rows: number, d: number, centred: boolean): { mean: TensorSpec; rstd: TensorSpec } {
  const data = x.data!;
  const moment = (r: number, centre: number, power: number) => {
    let sum = 0;
    for (let k = 0; k < d; k++) sum += (data[r * d + k] - centre) ** power;
    return sum / d;
  };
  const mean = input('f32', rows, (r) => (centred ? moment(r, 0, 1) : 0));
  const rstd = input('f32', rows, (r) => 1 / Math.sqrt(moment(r, stored('f32', mean.data![r]), 2) + EPS));
  return { mean, rstd };
}

const backward: CaseGenerator = (kernel, rng) =>
  shapes(rng).map(([rows, d]) => {
    const layer = kernel === 'layer_norm_bwd';
    const x = rowsOf(rng, rows, d, layer ? 0.5 : 0);
    const { mean, rstd } = statistics(x, rows, d, layer);
    const w = weight(rng, d);
    const dw = w && rng.chance(0.8) ? output('f32', d) : null;
    const db = layer && rng.chance(0.7) ? output('f32', d) : null;
    const dx = output(floatDtype(rng), rows * d);
    const dy = gaussian(rng, floatDtype(rng), rows * d);
    const addend = rng.chance(0.5) ? gaussian(rng, floatDtype(rng), rows * d) : null;
    const p = layer ? [dx, dw, db, x, w, mean, rstd, dy, addend] : [dx, dw, x, w, rstd, dy, addend];
    // A narrow row may be nearly constant: rstd is then large, and the gradient with it.
    const largest = Math.max(1, ...rstd.data!);
    return makeCase(kernel, {
      p,
      i: [rows, d],
      tolerance: tolerance(1e-5, 1e-5 * largest + 1e-6 * Math.sqrt(rows) * largest, 3e-5),
    });
  });

export const normCases: Record<string, CaseGenerator> = {
  rms_norm: forward,
  layer_norm: forward,
  rms_norm_bwd: backward,
  layer_norm_bwd: backward,
};
