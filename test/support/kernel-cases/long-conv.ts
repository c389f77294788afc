// Cases of the long and short causal convolutions and of the decay of implicit filters.
import { floatDtype, gaussian, input, makeCase, output, type Rng, tolerance } from './build.ts';
import type { CaseGenerator, TensorSpec } from './types.ts';

/** B, T, C, taps: direct sizes, then transforms of 2^a, 3 2^a and 5 2^a points, filled and not. */
const LONG = [
  [0, 8, 3, 8],
  [1, 1, 1, 1],
  [2, 7, 5, 7],
  [3, 50, 16, 50],
  [1, 96, 17, 60],
  [1, 97, 3, 97],
  [2, 128, 16, 128],
  [1, 150, 33, 200],
  [3, 192, 5, 192],
  [1, 200, 20, 40],
  [10, 130, 18, 130],
  [1, 255, 4, 255],
  [1, 320, 2, 320],
  [2, 700, 7, 700],
  [1, 1000, 3, 1000],
] as const;

/** Nothing, a few borders anywhere, or many. */
function segments(rng: Rng, B: number, T: number): TensorSpec | null {
  const often = rng.pick([0, 0.005, 0.02, 0.3]);
  if (often === 0) return null;
  let at = 0;
  return input('i32', B * T, () => (rng.chance(often) ? ++at : at));
}
const beta = (rng: Rng, C: number): TensorSpec | null => (rng.chance(0.6) ? gaussian(rng, 'f32', C) : null);
const near = (terms: number) => tolerance(1e-5, 3e-6 * (1 + Math.sqrt(terms)), 2e-6);

const long: CaseGenerator = (kernel, rng) =>
  [...LONG, ...LONG, ...LONG].map(([B, T, C, taps]) => {
    const dtype = floatDtype(rng);
    return makeCase(kernel, {
      p: [
        output(dtype, B * T * C),
        gaussian(rng, dtype, B * T * C),
        gaussian(rng, 'f32', taps * C),
        beta(rng, C),
        segments(rng, B, T),
      ],
      i: [B, T, C, taps, rng.int(0, 1)],
      tolerance: near(T),
    });
  });

const longBackward: CaseGenerator = (kernel, rng) =>
  [...LONG, ...LONG, ...LONG].map(([B, T, C, taps]) => {
    const dtype = floatDtype(rng);
    const skip = beta(rng, C);
    return makeCase(kernel, {
      p: [
        output(dtype, B * T * C),
        output('f32', taps * C),
        skip && output('f32', C),
        gaussian(rng, dtype, B * T * C),
        gaussian(rng, 'f32', taps * C),
        skip,
        gaussian(rng, dtype, B * T * C),
        segments(rng, B, T),
      ],
      i: [B, T, C, taps, rng.int(0, 1)],
      tolerance: near(B * T),
    });
  });

/** B, T, D, parts, convolved, K */
const SHORT = [
  [0, 5, 3, 2, 1, 3],
  [1, 1, 1, 1, 1, 1],
  [2, 9, 5, 1, 1, 4],
  [2, 40, 16, 2, 1, 3],
  [1, 70, 20, 2, 2, 4],
  [3, 33, 7, 3, 3, 3],
  [1, 6, 4, 4, 3, 2],
  [2, 50, 17, 4, 4, 7],
  [1, 3, 40, 3, 0, 4],
  [2, 3000, 6, 3, 3, 3],
] as const;

const short: CaseGenerator = (kernel, rng) =>
  [...SHORT, ...SHORT, ...SHORT].map(([B, T, D, parts, convolved, K]) => {
    const dtype = floatDtype(rng);
    return makeCase(kernel, {
      p: [
        output(dtype, B * T * D),
        parts > 2 ? output(dtype, B * T * D * (parts - 2)) : null,
        gaussian(rng, dtype, B * T * D * parts),
        gaussian(rng, 'f32', convolved * D * K),
        beta(rng, convolved * D),
        segments(rng, B, T),
      ],
      i: [B, T, D, parts, convolved, K],
      tolerance: tolerance(1e-5, 1e-5),
    });
  });

const shortBackward: CaseGenerator = (kernel, rng) =>
  [...SHORT, ...SHORT, ...SHORT].map(([B, T, D, parts, convolved, K]) => {
    const dtype = floatDtype(rng);
    const bias = beta(rng, convolved * D);
    return makeCase(kernel, {
      p: [
        output(dtype, B * T * D * parts),
        output('f32', convolved * D * K),
        bias && output('f32', convolved * D),
        gaussian(rng, dtype, B * T * D * parts),
        gaussian(rng, 'f32', convolved * D * K),
        bias,
        segments(rng, B, T),
        gaussian(rng, dtype, B * T * D),
        parts > 2 && rng.chance(0.8) ? gaussian(rng, dtype, B * T * D * (parts - 2)) : null,
      ],
      i: [B, T, D, parts, convolved, K],
      tolerance: tolerance(1e-5, 2e-6 * (1 + Math.sqrt(B * T)), 5e-6),
    });
  });

const window: CaseGenerator = (kernel, rng) =>
  [
    [0, 4],
    [1, 1],
    [5, 3],
    [70, 16],
    [200, 37],
    [3000, 5],
  ].map(([rows, C]) =>
    makeCase(kernel, {
      p: [output('f32', rows * C), gaussian(rng, 'f32', rows * C)],
      i: [rows, C],
      f: [3 / rows, rng.pick([15, 200]) / rows, rng.pick([0, 0.05])],
      tolerance: tolerance(1e-5, 1e-7),
    }),
  );

export const longConvCases: Record<string, CaseGenerator> = {
  long_conv: long,
  long_conv_bwd: longBackward,
  short_conv: short,
  short_conv_bwd: shortBackward,
  decay_window: window,
};
