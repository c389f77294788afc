// Cases of hashing, chunks, and attention over chunks. The backward pass gets the out and lse that the reference computes.
import type { ElementType } from '../../../src/backend/dtype.ts';
import { lsh as ref } from '../../../src/backend/ref/lsh.ts';
import { floatDtype, gaussian, input, makeCase, output, type Rng, tolerance } from './build.ts';
import type { CaseGenerator, KernelCase, TensorSpec } from './types.ts';

const outOfRange = (value: number, limit: number): string => `index ${value} out of range: limit ${limit}`;

/** Small multiples of 1/8: dot products are exact in f32, and ties occur. */
const eighths = (rng: Rng, dtype: ElementType, n: number, edges = false): TensorSpec =>
  input(dtype, n, () => (edges && rng.chance(0.02) ? Number.NaN : rng.int(-12, 12) / 8));

const hash: CaseGenerator = (kernel, rng) => {
  const build = (B: number, T: number, H: number, D: number, R: number, f: number[], gap: number): KernelCase => {
    const tok = (H + gap) * D;
    const axes = f.reduce((n, x) => n + x / 2, 0);
    return makeCase(kernel, {
      p: [
        output('i32', B * H * R * T),
        eighths(rng, floatDtype(rng), B * T * tok, rng.chance(0.2)),
        eighths(rng, 'f32', H * R * axes * D),
      ],
      i: [B, T, H, D, R, f[0], f[1] ?? 0, tok],
    });
  };
  const even = () => 2 * rng.int(1, 8);
  const random = Array.from({ length: 60 }, () =>
    build(
      ...([rng.int(1, 2), rng.int(1, 80), rng.int(1, 3), rng.int(1, 40), rng.int(1, 4)] as const),
      rng.chance(0.5) ? [even()] : [even(), even()],
      rng.pick([0, 1, 3]),
    ),
  );
  return [
    ...random,
    ...[build(1, 300, 2, 64, 2, [128], 2), build(2, 129, 4, 64, 8, [32, 32], 4), build(1, 0, 2, 8, 2, [2], 2)],
    build(0, 5, 2, 8, 2, [2], 2),
  ];
};

interface Problem {
  readonly dtype: ElementType;
  readonly B: number;
  readonly T: number;
  readonly H: number;
  readonly D: number;
  readonly R: number;
  readonly C: number;
  readonly back: number;
  readonly dedupe: boolean;
  readonly buckets: number;
  /** Queries see their own bucket only. */
  readonly masked: boolean;
  readonly segments: boolean;
}

function segmentsOf(rng: Rng, { B, T, segments }: Problem): TensorSpec | null {
  let current = 0;
  return segments ? input('i32', B * T, (k) => (k % T === 0 ? (current = 7) : (current += +rng.chance(0.1)))) : null;
}

/** Now and then one bucket for all, or all in a few. */
function bucketsOf(rng: Rng, { B, T, H, R, buckets }: Problem): TensorSpec | null {
  const few = rng.int(1, buckets);
  return buckets === 1 && rng.chance(0.5) ? null : input('i32', B * H * R * T, () => rng.int(0, few - 1));
}

const sort: CaseGenerator = (kernel, rng) =>
  [...problems(rng), ...problems(rng)].map((s, k) => {
    const n = s.B * s.H * s.R * s.T;
    const buckets = bucketsOf(rng, s);
    const bad = k === 5 && buckets !== null;
    if (bad) (buckets.data as Int32Array)[n - 1] = -1;
    return makeCase(kernel, {
      p: [output('i32', n), output('i32', n), buckets, segmentsOf(rng, s)],
      i: [s.B, s.T, s.H, s.R, s.buckets, s.C],
      error: bad ? outOfRange(-1, s.buckets) : undefined,
    });
  });

interface Tensors {
  readonly x: TensorSpec;
  /** order, place, buckets?, segments? */
  readonly rest: readonly (TensorSpec | null)[];
  readonly ints: readonly number[];
  readonly floats: readonly number[];
}

function tensors(rng: Rng, s: Problem): Tensors {
  const { B, T, H, D, R, C } = s;
  const n = B * H * R * T;
  const buckets = bucketsOf(rng, s);
  const segments = segmentsOf(rng, s);
  const [order, place] = [new Int32Array(n), new Int32Array(n)];
  const p = [order, place, buckets?.data ?? null, segments?.data ?? null];
  ref.lsh_sort({ p, m: p, o: p.map(() => 0), t: [], i: [B, T, H, R, s.buckets, C], f: [] });
  const fixed = (data: Int32Array) => input('i32', n, (k) => data[k]);
  return {
    x: gaussian(rng, s.dtype, B * T * 2 * H * D),
    rest: [fixed(order), fixed(place), s.masked ? buckets : null, segments],
    ints: [B, T, H, D, R, C, s.back, Number(s.dedupe)],
    floats: [rng.pick([1, 0.5, 2])],
  };
}

const close = (dtype: ElementType, factor: number) =>
  dtype === 'f32' ? tolerance(1e-5, 4e-6 * factor, 6e-6) : tolerance(1e-2, 1e-2 * factor, 1e-2);

function forward(rng: Rng, s: Problem): KernelCase {
  const { x, rest, ints, floats } = tensors(rng, s);
  const p = [output(s.dtype, x.length / 2), output('f32', s.B * s.H * s.T), x, ...rest];
  return makeCase('lsh_attention', { p, i: ints, f: floats, tolerance: close(s.dtype, 1) });
}

function backward(rng: Rng, s: Problem): KernelCase {
  const { x, rest, ints, floats } = tensors(rng, s);
  const [out, lse] = [new Float64Array(x.length / 2), new Float64Array(s.B * s.H * s.T)];
  const p = [out, lse, x.data, ...rest.map((spec) => spec?.data ?? null)];
  ref.lsh_attention({ p, m: p, o: p.map(() => 0), t: [], i: ints, f: floats });
  return makeCase('lsh_attention_bwd', {
    p: [
      ...[output(s.dtype, x.length), gaussian(rng, s.dtype, out.length), x],
      ...[input(s.dtype, out.length, (k) => out[k]), input('f32', lse.length, (k) => lse[k]), ...rest],
    ],
    i: ints,
    f: floats,
    // A key's gradient sums over all queries that see it, and is divided by its length, which may be small where D is.
    tolerance: close(s.dtype, (s.D < 8 ? 12 : 3) * Math.sqrt(1 + Math.min(s.T, 2 * s.C * s.R))),
  });
}

function problems(rng: Rng): Problem[] {
  const random = Array.from({ length: 90 }, (): Problem => {
    const C = rng.pick([1, 2, 3, 5, 8, 16, 17, 33, 64, 64, 65, 100, 128]);
    return {
      dtype: floatDtype(rng),
      ...{ B: rng.int(1, 2), T: rng.int(1, Math.min(6 * C, 200)), H: rng.int(1, 3), C },
      D: rng.pick([2, 4, 8, 12, 16, 20, 31, 33, 40, 64, 80]),
      ...{ R: rng.pick([1, 2, 2, 2, 3, 4]), back: rng.pick([0, 1, 1, 1, 2, 3]), dedupe: rng.chance(0.75) },
      ...{ buckets: rng.pick([1, 2, 4, 10]), masked: rng.chance(0.25), segments: rng.chance(0.3) },
    };
  });
  const plain = { B: 1, H: 2, D: 64, C: 64, R: 2, back: 1, dedupe: true, buckets: 16, masked: false, segments: false };
  const chosen = (['f32', 'bf16'] as const).flatMap((dtype): Problem[] => [
    { ...plain, dtype, T: 640 },
    { ...plain, dtype, T: 1100, H: 1, D: 32 }, // three groups of chunks
    { ...plain, dtype, T: 1100, H: 1, D: 16, C: 32, back: 3, R: 3, segments: true },
    { ...plain, dtype, T: 600, H: 1, D: 8, C: 256, back: 2 }, // the last group is shorter than the look-back
    { ...plain, dtype, T: 200, D: 16, R: 16, buckets: 4 },
    { ...plain, dtype, T: 0 },
    { ...plain, dtype, T: 9, B: 0 },
  ]);
  return [...random, ...chosen];
}

export const lshCases: Record<string, CaseGenerator> = {
  lsh_hash: hash,
  lsh_sort: sort,
  lsh_attention: (_, rng) => problems(rng).map((s) => forward(rng, s)),
  lsh_attention_bwd: (_, rng) => problems(rng).map((s) => backward(rng, s)),
};
