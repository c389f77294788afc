// Cases of products with weights in blocks, of packing and unpacking them, and of rows of tables in blocks.

import { matrixBytes, q4Levels } from '../../../src/backend/ref/quant-format.ts';
import { quantPack } from '../../../src/backend/ref/quant-pack.ts';
import type { RefArray } from '../../../src/backend/ref/types.ts';
import { floatDtype, gaussian, input, makeCase, output, type Rng, tolerance } from './build.ts';
import type { CaseGenerator, KernelCase, TensorSpec } from './types.ts';

const FORMATS = [0, 1, 2, 3];

/** Packed weights [batch, N, K] of normally distributed values; q4 with given scales, since its search is slow here. */
export function packed(rng: Rng, batch: number, N: number, K: number, format: number): TensorSpec {
  const bytes = new Uint8Array(batch * matrixBytes(format, N, K));
  const w = Float64Array.from({ length: batch * N * K }, () => rng.normal());
  const scales = Float64Array.from({ length: batch * N * Math.ceil(K / 32) }, () => rng.uniform(0.015, 0.03));
  const p: (RefArray | null)[] = [bytes, w, format === 1 ? scales : null];
  quantPack.quant_pack({ p, m: p, o: [0, 0, 0], t: ['u8', 'f32', 'f32'], i: [batch, N, K, format], f: [] });
  return { dtype: 'u8', length: bytes.length, data: bytes, role: 'in' };
}

/** Sums of K products of normal values, the larger ones of which cancel. */
const products = (K: number, alpha: number) =>
  tolerance(3e-6, 3e-6 * Math.sqrt(K + 1) * Math.max(1, Math.abs(alpha)), 3e-6);

function matmulCase(rng: Rng, R: number, N: number, K: number, format: number): KernelCase {
  const alpha = rng.pick([1, 1, 0.125, -2]);
  return makeCase('quant_matmul', {
    p: [
      output(floatDtype(rng), R * N),
      gaussian(rng, floatDtype(rng), R * K),
      packed(rng, 1, N, K, format),
      rng.chance(0.4) ? gaussian(rng, floatDtype(rng), N) : null,
      rng.chance(0.4) ? gaussian(rng, floatDtype(rng), R * N) : null,
    ],
    i: [R, N, K, format, rng.int(0, 1)],
    f: [alpha],
    tolerance: products(K, alpha),
  });
}

const quantMatmul: CaseGenerator = (_, rng) => {
  const rows = [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 19];
  const sizes = [1, 5, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 129];
  const cases: KernelCase[] = [];
  for (const format of FORMATS) {
    for (let k = 0; k < 25; k++) cases.push(matmulCase(rng, rng.pick(rows), rng.pick(sizes), rng.pick(sizes), format));
    cases.push(matmulCase(rng, 0, 20, 30, format));
    cases.push(matmulCase(rng, 1, 70, 1100, format)); // longer than one piece of the inputs
    cases.push(matmulCase(rng, 23, 70, 1100, format));
    cases.push(matmulCase(rng, 70, 40, 300, format));
    cases.push(matmulCase(rng, 510, 18, 70, format)); // more rows than are packed at a time
  }
  // A row with NaN or infinity, and one of denormals, leave the others alone.
  const odd = matmulCase(rng, 5, 20, 70, 0);
  const x = Float64Array.from({ length: 5 * 70 }, (_, k) => (k < 280 ? rng.pick([1, -2, 0.5]) : 1e-35));
  x[75] = Number.NaN;
  x[150] = Number.POSITIVE_INFINITY;
  cases.push({ ...odd, p: odd.p.map((spec, k) => (k === 1 ? input('f32', 350, (j) => x[j]) : spec)) });
  return cases;
};

const quantGroupedMatmul: CaseGenerator = (_, rng) => {
  const one = (sizes: readonly number[], spare: number, N: number, K: number, format: number): KernelCase => {
    const offsets = [0];
    for (const n of sizes) offsets.push(offsets[offsets.length - 1] + n);
    const R = offsets[sizes.length] + spare;
    const alpha = rng.pick([1, 0.5]);
    return makeCase('quant_grouped_matmul', {
      p: [
        output(floatDtype(rng), R * N),
        gaussian(rng, floatDtype(rng), R * K),
        packed(rng, sizes.length, N, K, format),
        input('i32', offsets.length, (k) => offsets[k]),
      ],
      i: [R, sizes.length, N, K, format, rng.int(0, 1)],
      f: [alpha],
      tolerance: products(K, alpha),
    });
  };
  const cases = FORMATS.flatMap((format) => [
    one([1, 0, 2, 5], 0, 33, 70, format),
    one([0, 0, 7, 0, 1], 4, 20, 65, format),
    one([0, 0], 3, 16, 64, format),
    one([400, 0, 130, 3], 5, 17, 33, format),
    one([13], 0, 50, 129, format),
  ]);
  const bad = one([2, 3], 1, 17, 40, 0);
  const wrong = (at: number, value: number, limit: number): KernelCase => ({
    ...bad,
    p: bad.p.map((spec, k) => (k === 3 ? input('i32', 3, (j) => (j === at ? value : [0, 2, 5][j])) : spec)),
    error: `index ${value} out of range: limit ${limit}`,
  });
  return [...cases, wrong(2, 9, 7), wrong(1, -1, 7)];
};

/**
 * Values that leave no choice: q8 gets whole multiples of a power of two up to 127 times, q4 exact levels, with the
 * scale given or (as all levels occur) certain.
 */
function exactValues(rng: Rng, rows: number, K: number, format: number): Float64Array {
  const x = new Float64Array(rows * K);
  for (let k = 0; k < x.length; k++) {
    const i = (k % K) % 32;
    if (format === 0) x[k] = i === 0 ? 127 : rng.int(-127, 127);
    else if (format === 1) x[k] = i < 16 ? q4Levels[i] : rng.pick(q4Levels);
    else x[k] = rng.normal();
    if (format <= 1) x[k] *= 2 ** -((Math.floor(k / K) + Math.floor((k % K) / 32)) % 9);
  }
  return x;
}

const quantPackCases: CaseGenerator = (_, rng) => {
  const one = (batch: number, N: number, K: number, format: number, given: boolean): KernelCase => {
    const x = exactValues(rng, batch * N, K, format);
    const groups = Math.ceil(K / 32);
    const scale = (k: number) => 2 ** -((Math.floor(k / groups) + (k % groups)) % 9);
    return makeCase('quant_pack', {
      p: [
        output('u8', batch * matrixBytes(format, N, K)),
        input(floatDtype(rng), x.length, (k) => x[k]),
        given ? input('f32', batch * N * groups, scale) : null,
      ],
      i: [batch, N, K, format],
      note: given ? 'scales given' : '',
    });
  };
  const cases: KernelCase[] = [];
  for (const format of FORMATS)
    for (const [batch, N, K] of [
      [1, 16, 64],
      [1, 17, 96],
      [3, 5, 32],
      [1, 33, 160],
      [2, 1, 32],
    ]) {
      cases.push(one(batch, N, K, format, true));
      if (format !== 1 || N < 20) cases.push(one(batch, N, K, format, false));
    }
  // A part of a group, zeros, and what is not finite.
  for (const format of [0, 1]) {
    const x = [0, 127, -127, 64, Number.NaN, 1, Number.POSITIVE_INFINITY, 2, 0, 0];
    cases.push(
      makeCase('quant_pack', {
        p: [output('u8', matrixBytes(format, 5, 2)), input('f32', 10, (k) => x[k]), input('f32', 5, () => 1)],
        i: [1, 5, 2, format],
        note: 'not finite',
      }),
    );
  }
  return cases;
};

const quantUnpack: CaseGenerator = (_, rng) =>
  FORMATS.flatMap((format) =>
    [
      [1, 1, 1],
      [1, 40, 70],
      [3, 17, 33],
    ].map(([batch, N, K]) =>
      makeCase('quant_unpack', {
        p: [output(floatDtype(rng), batch * N * K), packed(rng, batch, N, K, format)],
        i: [batch, N, K, format],
        tolerance: tolerance(1e-7, 0, 1e-7),
      }),
    ),
  );

const quantEmbedding: CaseGenerator = (_, rng) => {
  const one = (n: number, d: number, rows: number, format: number, ids?: readonly number[]) =>
    makeCase('quant_embedding', {
      p: [
        output(floatDtype(rng), n * d),
        packed(rng, 1, rows, d, format),
        input('i32', n, (k) => ids?.[k] ?? rng.int(0, rows - 1)),
      ],
      i: [n, d, rows, format],
      tolerance: tolerance(1e-7, 0, 1e-7),
    });
  return FORMATS.flatMap((format) => [
    one(1, 64, 16, format),
    one(20, 33, 37, format),
    one(7, 300, 5, format),
    { ...one(3, 40, 20, format, [1, 20, 3]), error: 'index 20 out of range: limit 20' },
    { ...one(3, 40, 20, format, [1, 2, -1]), error: 'index -1 out of range: limit 20' },
  ]);
};

export const quantCases: Record<string, CaseGenerator> = {
  quant_matmul: quantMatmul,
  quant_grouped_matmul: quantGroupedMatmul,
  quant_pack: quantPackCases,
  quant_unpack: quantUnpack,
  quant_embedding: quantEmbedding,
};
