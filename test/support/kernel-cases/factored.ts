// Cases of the factored dense layer, its loss, and the convolution over time and modules.
import { floatDtype, gaussian, input, makeCase, output, type Rng, tolerance } from './build.ts';
import type { CaseGenerator, TensorSpec } from './types.ts';

/** rows, width in, modules, width of a module */
const SHAPES = [
  [0, 4, 2, 3],
  [1, 1, 1, 1],
  [3, 5, 2, 4],
  [7, 16, 4, 4],
  [20, 33, 3, 11],
  [65, 48, 6, 8],
  [130, 20, 5, 40],
];
const all = [...SHAPES, ...SHAPES, ...SHAPES, ...SHAPES];

const rounded = (compute: number, terms: number) =>
  compute === 1
    ? tolerance(1e-2, 6e-3 * (1 + Math.sqrt(terms)), 6e-3)
    : tolerance(1e-5, 1e-5 * (1 + Math.sqrt(terms)), 1e-5);

const linear: CaseGenerator = (kernel, rng) =>
  all.map(([rows, d, S, M]) => {
    const compute = rng.int(0, 1);
    return makeCase(kernel, {
      p: [
        output(floatDtype(rng), rows * S * M),
        gaussian(rng, floatDtype(rng), rows * d),
        gaussian(rng, 'f32', S * d, 0.5),
        gaussian(rng, 'f32', M * d),
        rng.chance(0.5) ? gaussian(rng, 'f32', S * M) : null,
      ],
      i: [rows, d, S, M, compute],
      tolerance: rounded(compute, d),
    });
  });

const linearBackward: CaseGenerator = (kernel, rng) =>
  all.map(([rows, d, S, M]) => {
    const compute = rng.int(0, 1);
    return makeCase(kernel, {
      p: [
        output(floatDtype(rng), rows * d),
        output('f32', S * d),
        output('f32', M * d),
        gaussian(rng, floatDtype(rng), rows * d),
        gaussian(rng, 'f32', S * d, 0.5),
        gaussian(rng, 'f32', M * d),
        gaussian(rng, floatDtype(rng), rows * S * M),
      ],
      i: [rows, d, S, M, compute],
      tolerance: rounded(compute, Math.max(S * M, rows * M)),
    });
  });

function targets(rng: Rng, rows: number, V: number): TensorSpec {
  const share = rng.pick([0, 0.3, 1]);
  return input('i32', rows, () => (rng.chance(share) ? -1 : rng.int(0, V - 1)));
}

const crossEntropy: CaseGenerator = (kernel, rng) => {
  const random = [...all, [600, 8, 3, 30]].map(([rows, d, S, M]) => {
    const [compute, grads] = [rng.int(0, 1), rng.chance(0.7)];
    const V = S * M - rng.int(0, S > 1 ? M - 1 : 0);
    return makeCase(kernel, {
      p: [
        output('f32', rows),
        grads ? output(floatDtype(rng), rows * d) : null,
        grads ? output('f32', S * d) : null,
        grads ? output('f32', M * d) : null,
        gaussian(rng, floatDtype(rng), rows * d),
        gaussian(rng, 'f32', S * d, 0.5),
        gaussian(rng, 'f32', M * d),
        targets(rng, rows, V),
        rng.chance(0.7) ? input('f32', rows, () => rng.next()) : null,
      ],
      i: [rows, d, S, M, V, -1, compute],
      f: [rng.pick([0, 1e-3]), rng.pick([1, 1 / Math.sqrt(d)])],
      tolerance: rounded(compute, 4 * d),
    });
  });
  const bad = makeCase(kernel, {
    p: [
      output('f32', 3),
      ...[null, null, null],
      gaussian(rng, 'f32', 12),
      gaussian(rng, 'f32', 8),
      gaussian(rng, 'f32', 12),
      input('i32', 3, (k) => [0, 5, 1][k]),
      null,
    ],
    i: [3, 4, 2, 3, 5, -1, 0],
    f: [0, 1],
    error: 'index 5 out of range: limit 5',
  });
  return [...random, bad];
};

/** B, T, S, C, O, K, J */
const CONVS = [
  [1, 1, 1, 1, 1, 1, 1],
  [2, 5, 3, 2, 4, 3, 3],
  [1, 7, 4, 3, 2, 3, 1],
  [2, 9, 2, 5, 5, 2, 3],
  [3, 4, 1, 6, 3, 4, 5],
  [0, 4, 2, 2, 2, 3, 3],
  [2, 40, 4, 16, 16, 3, 3],
];
const segments = (rng: Rng, B: number, T: number): TensorSpec | null =>
  rng.chance(0.6) ? input('i32', B * T, (k) => Math.floor((k % T) / 3)) : null;
const convs = [...CONVS, ...CONVS, ...CONVS, ...CONVS];

const conv: CaseGenerator = (kernel, rng) =>
  convs.map(([B, T, S, C, O, K, J]) => {
    const compute = rng.int(0, 1);
    return makeCase(kernel, {
      p: [
        output(floatDtype(rng), B * T * S * O),
        gaussian(rng, floatDtype(rng), B * T * S * C),
        gaussian(rng, 'f32', O * K * J * C),
        rng.chance(0.5) ? gaussian(rng, 'f32', O) : null,
        segments(rng, B, T),
      ],
      i: [B, T, S, C, O, K, J, rng.int(0, 1), compute],
      tolerance: rounded(compute, K * J * C),
    });
  });

const convWeight: CaseGenerator = (kernel, rng) =>
  convs.map(([B, T, S, C, O, K, J]) => {
    const compute = rng.int(0, 1);
    return makeCase(kernel, {
      p: [
        output('f32', O * K * J * C),
        gaussian(rng, floatDtype(rng), B * T * S * C),
        gaussian(rng, floatDtype(rng), B * T * S * O),
        segments(rng, B, T),
      ],
      i: [B, T, S, C, O, K, J, 0, compute],
      tolerance: rounded(compute, B * T * S),
    });
  });

export const factoredCases: Record<string, CaseGenerator> = {
  factored_linear: linear,
  factored_linear_bwd: linearBackward,
  factored_cross_entropy: crossEntropy,
  module_conv: conv,
  module_conv_bwd_w: convWeight,
};
