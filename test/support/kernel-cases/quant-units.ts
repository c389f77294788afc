// Cases of units as records: packing, the layer that uses one of each block, and the choice of units.
import { q4Levels } from '../../../src/backend/ref/quant-format.ts';
import { partBytes, quantUnits } from '../../../src/backend/ref/quant-units.ts';
import type { RefArray } from '../../../src/backend/ref/types.ts';
import { floatDtype, gaussian, input, makeCase, output, type Rng, tolerance } from './build.ts';
import type { CaseGenerator, KernelCase, TensorSpec } from './types.ts';

const FORMATS = [0, 1, 2, 3];
const recordBytes = (format: number, d: number, gated: boolean): number => partBytes(format, d) * (gated ? 3 : 2);

function records(rng: Rng, F: number, d: number, format: number, gated: boolean): TensorSpec {
  const bytes = new Uint8Array(F * recordBytes(format, d, gated));
  const matrix = () => Float64Array.from({ length: F * d }, () => rng.normal() / Math.sqrt(d));
  const p: (RefArray | null)[] = [bytes, matrix(), gated ? matrix() : null, matrix()];
  quantUnits.unit_pack({ p, m: p, o: [0, 0, 0, 0], t: ['u8', 'f32', 'f32', 'f32'], i: [F, d, format, 0], f: [] });
  return { dtype: 'u8', length: bytes.length, data: bytes, role: 'in' };
}

interface Layer {
  readonly rows: number;
  readonly d: number;
  readonly F: number;
  readonly N: number;
  readonly format: number;
  readonly gated: boolean;
}

function layerCase(rng: Rng, { rows, d, F, N, format, gated }: Layer): KernelCase {
  const A = F / N;
  const maybe = (n: number) => (rng.chance(0.4) ? gaussian(rng, 'f32', n) : null);
  const p = [
    output(floatDtype(rng), rows * d),
    rng.chance(0.7) ? output('i32', 4) : null,
    gaussian(rng, floatDtype(rng), rows * d),
    input('i32', rows * A, () => rng.int(0, N - 1)),
    records(rng, F, d, format, gated),
    maybe(F),
    gated ? maybe(F) : null,
    maybe(rows * A),
    maybe(d),
    rng.chance(0.4) ? gaussian(rng, floatDtype(rng), rows * d) : null,
  ];
  const tol = tolerance(4e-6, 4e-6 * Math.sqrt(A + d), 4e-6);
  return makeCase('sparse_units', { p, i: [rows, d, F, N, format, +gated], f: [rng.pick([1, 0.5])], tolerance: tol });
}

const sparseUnits: CaseGenerator = (_, rng) => {
  const cases = FORMATS.flatMap((format) =>
    [false, true].flatMap((gated) => [
      layerCase(rng, { rows: 1, d: 64, F: 32, N: 4, format, gated }),
      layerCase(rng, { rows: 1, d: 1, F: 2, N: 2, format, gated }),
      layerCase(rng, { rows: 5, d: 100, F: 24, N: 3, format, gated }),
      layerCase(rng, { rows: 2, d: 640, F: 40, N: 2, format, gated }),
      layerCase(rng, { rows: 130, d: 33, F: 12, N: 3, format, gated }), // more rows than are taken at a time
      layerCase(rng, { rows: 3, d: 40, F: 600, N: 2, format, gated }), // more parts than one
      layerCase(rng, { rows: 0, d: 40, F: 6, N: 2, format, gated }),
    ]),
  );
  const bad = layerCase(rng, { rows: 2, d: 20, F: 6, N: 3, format: 0, gated: false });
  const wrong = (value: number): KernelCase => ({
    ...bad,
    p: bad.p.map((spec, k) => (k === 3 ? input('i32', 4, (j) => (j === 2 ? value : 1)) : spec)),
    error: `index ${value} out of range: limit 3`,
  });
  return [...cases, wrong(3), wrong(-1)];
};

const unitPack: CaseGenerator = (_, rng) => {
  const one = (F: number, d: number, format: number, gated: boolean, columns: boolean): KernelCase => {
    // q8 and q4 get values that leave no choice: see the cases of quant_pack.
    const value = (unit: number, k: number): number => {
      const i = k % 32;
      if (format > 1) return rng.normal();
      const step = 2 ** -((unit + Math.floor(k / 32)) % 9);
      if (format === 0) return step * (i === 0 ? 127 : rng.int(-127, 127));
      return step * (i < 16 ? q4Levels[i] : rng.pick(q4Levels));
    };
    const matrix = () => input(floatDtype(rng), F * d, (k) => value(Math.floor(k / d), k % d));
    const turned = (spec: TensorSpec): TensorSpec =>
      input(spec.dtype, F * d, (k) => spec.data![(k % F) * d + Math.floor(k / F)]);
    const down = matrix();
    return makeCase('unit_pack', {
      p: [
        output('u8', F * recordBytes(format, d, gated)),
        matrix(),
        gated ? matrix() : null,
        columns ? turned(down) : down,
      ],
      i: [F, d, format, +columns],
    });
  };
  return FORMATS.flatMap((format) => [
    one(1, 32, format, false, false),
    one(16, 64, format, true, true),
    one(19, 96, format, false, true),
    one(5, 192, format, true, false),
    one(33, 16, format, true, true),
  ]);
};

const unitChoice: CaseGenerator = (_, rng) => {
  const one = (
    [rows, d, r, F, N]: readonly [number, number, number, number, number],
    ties = false,
    layout = 0,
  ): KernelCase => {
    // In pairs of inputs, an odd one has a zero beside it.
    const values = layout === 2 ? F * (r + (r % 2)) : F * r;
    const padding = (k: number) =>
      layout === 2 && r % 2 === 1 && k % 2 === 1 && Math.floor(k / 32) % ((r + 1) / 2) === (r - 1) / 2;
    const logits = input(layout === 0 ? floatDtype(rng) : layout === 1 ? 'f32' : 'bf16', values, (k) =>
      padding(k) ? 0 : rng.int(ties ? -1 : -50, ties ? 1 : 50),
    );
    // Whole numbers: sums are exact, so that the largest is certain, and ties are real ones.
    const whole = (n: number, most: number) => input(floatDtype(rng), n, () => rng.int(-most, most));
    return makeCase('unit_choice', {
      p: [
        output('i32', (rows * F) / N),
        whole(rows * d, 3),
        whole(r * d, 3),
        logits,
        rng.chance(0.5) ? input('f32', F, () => rng.int(-20, 20)) : null,
      ],
      i: [rows, d, r, F, N, layout],
    });
  };
  const nan = one([1, 8, 2, 12, 4]);
  return [
    one([1, 64, 16, 64, 8]),
    one([1, 1, 1, 4, 2]),
    one([3, 70, 5, 60, 3], true),
    one([9, 33, 33, 66, 33], true),
    one([2, 300, 64, 96, 32]),
    one([0, 10, 3, 8, 4]),
    one([1, 5, 7, 4000, 2]),
    ...[1, 2].flatMap((layout) => [
      one([1, 64, 16, 64, 64], false, layout),
      one([5, 40, 7, 96, 16], true, layout),
      one([11, 33, 1, 96, 48], true, layout),
      one([2, 300, 32, 1280, 80], false, layout),
      one([0, 10, 3, 32, 16], false, layout),
    ]),
    // NaN is never chosen, and a block of it falls to its first unit.
    {
      ...nan,
      p: nan.p.map((spec, k) =>
        k === 3 ? input('f32', 24, (j) => (j < 8 || j === 10 ? Number.NaN : (j % 5) - 2)) : spec,
      ),
    },
  ];
};

export const quantUnitCases: Record<string, CaseGenerator> = {
  sparse_units: sparseUnits,
  unit_pack: unitPack,
  unit_choice: unitChoice,
};
