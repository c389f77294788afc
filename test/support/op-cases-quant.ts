// Cases of weights in blocks and of units as records. Values are whole multiples of a group's step, so that quantising
// loses nothing and plain products say what must come out.
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import {
  type CaseInput,
  constant,
  get,
  integers,
  type Nd,
  nd,
  normals,
  type OpCase,
  opCase,
} from './op-cases-build.ts';

const LEVELS = [-127, -98, -77, -61, -47, -34, -22, -11, 0, 11, 23, 35, 49, 64, 82, 105];

/** Rows of `width` values that a type keeps exactly. */
export function exact(rng: Rng, shape: readonly number[], type: T.BlockType | T.UnitType): CaseInput {
  const width = shape[shape.length - 1];
  return constant(shape, 'f32', (k) => {
    const i = (k % width) % 32;
    const step = 2 ** -(7 + ((Math.floor(k / width) + Math.floor((k % width) / 32)) % 3));
    if (type === 'q8') return step * (i === 0 ? 127 : rng.int(-127, 127));
    if (type === 'q4') return step * (i < 16 ? LEVELS[i] : rng.pick(LEVELS));
    return step * rng.int(-100, 100);
  });
}

const dot = (x: Nd, row: readonly number[], w: Nd, at: readonly number[], K: number): number => {
  let sum = 0;
  for (let k = 0; k < K; k++) sum += get(x, [...row, k]) * get(w, [...at, k]);
  return sum;
};

function weightCases(rng: Rng): OpCase[] {
  return T.blockTypes.flatMap((type) => {
    const [N, K] = [21, 64];
    const x = exact(rng, [2, 3, K], 'q8');
    const w = exact(rng, [N, K], type);
    const [bias, addend] = [constant([N], 'f32', normals(rng)), constant([2, 3, N], 'f32', normals(rng))];
    const ids = constant([2, 2], 'i32', integers(rng, 0, N - 1));
    const experts = exact(rng, [3, N, K], type);
    const same = ([v]: readonly Nd[]): Nd[] => [v as Nd];
    return [
      opCase('quantise', [w], ([v]) => [T.dequantise(T.quantise(v, type))], { expect: same, note: type }),
      opCase('dequantise', [experts], ([v]) => [T.dequantise(T.quantise(v, type), 'bf16')], {
        expect: same,
        note: type,
      }),
      opCase(
        'quant_matmul',
        [x, w, bias, addend],
        ([a, v, b, c]) => [T.matmul(a, T.quantise(v, type), { transB: true, bias: b, addend: c, alpha: 0.5 })],
        {
          expect: ([a, v, b, c]) => [
            nd([2, 3, N], ([i, j, n]) => 0.5 * dot(a, [i, j], v, [n], K) + get(b, [n]) + get(c, [i, j, n])),
          ],
          note: type,
        },
      ),
      opCase('quant_embedding', [w, ids], ([v, id]) => [T.embedding(T.quantise(v, type), id)], {
        expect: ([v, id]) => [nd([2, 2, K], ([i, j, k]) => get(v, [get(id, [i, j]), k]))],
        note: type,
      }),
      opCase(
        'quant_grouped_matmul',
        [exact(rng, [7, K], 'q8'), experts, constant([4], 'i32', (k) => [0, 2, 2, 6][k])],
        ([a, v, offsets]) => [T.groupedMatmul(a, T.quantise(v, type), { offsets, most: 7 }, { transB: true })],
        {
          expect: ([a, v]) => [nd([7, N], ([r, n]) => (r < 6 ? dot(a, [r], v, [r < 2 ? 0 : 2, n], K) : 0))],
          note: type,
        },
      ),
    ];
  });
}

interface UnitCase {
  readonly type: T.UnitType;
  readonly gated: boolean;
  readonly columns: boolean;
}

function unitCase(rng: Rng, { type, gated, columns }: UnitCase): OpCase[] {
  const [rows, d, F, N] = [5, 64, 12, 3];
  const A = F / N;
  const matrix = () => exact(rng, [F, d], type);
  const [up, gate, down] = [matrix(), matrix(), matrix()];
  const turned = constant([d, F], 'f32', (k) => down.data[(k % F) * d + Math.floor(k / F)]);
  const inputs = [
    exact(rng, [rows, d], 'q8'),
    constant([rows, A], 'i32', integers(rng, 0, N - 1)),
    up,
    columns ? turned : down,
    constant([F], 'f32', normals(rng)),
    constant([rows, A], 'f32', normals(rng)),
    constant([d], 'f32', normals(rng)),
    constant([rows, d], 'f32', normals(rng)),
    ...(gated ? [gate, constant([F], 'f32', normals(rng))] : []),
  ];
  const note = `${type}${gated ? ' gated' : ''}${columns ? ' columns' : ''}`;
  const pack = (x: readonly T.Tensor[]): T.Tensor =>
    T.packUnits(x[2], x[3], { type, gate: gated ? x[8] : null, columns });
  return [
    opCase('pack_units', inputs, (x) => [pack(x)], { note }),
    opCase(
      'sparse_units',
      inputs,
      (x) => {
        const [bias, weight, outBias, addend] = x.slice(4, 8);
        const options = { type, block: N, gated, bias, weight, outBias, addend, gateBias: gated ? x[9] : null };
        const { y, touched } = T.sparseUnits(x[0], x[1], pack(x), { ...options, alpha: 0.5 });
        return [y, touched];
      },
      {
        expect: (x) => {
          const [a, choice, w, , bias, weight, outBias, addend] = x;
          const [records, seconds] = [new Set<number>(), new Set<number>()];
          let active = 0;
          const h = nd([rows, A], ([r, b]) => {
            const u = b * N + get(choice, [r, b]);
            records.add(u);
            const first = dot(a, [r], w, [u], d) + get(bias, [u]);
            const g = gated ? dot(a, [r], x[8], [u], d) + get(x[9], [u]) : first;
            if (g <= 0) return 0;
            seconds.add(u);
            active++;
            return (gated ? first * g : first) * get(weight, [r, b]);
          });
          const y = nd([rows, d], ([r, k]) => {
            let sum = 0;
            for (let b = 0; b < A; b++) sum += get(h, [r, b]) * down.data[(b * N + get(choice, [r, b])) * d + k];
            return 0.5 * sum + get(outBias, [k]) + get(addend, [r, k]);
          });
          return [y, nd([4], ([k]) => [records.size, seconds.size, rows * A, active][k])];
        },
        note,
        slack: 1e-4,
      },
    ),
  ];
}

function choiceCase(rng: Rng, dtype: 'f32' | 'bf16' | null): OpCase {
  // Strips are of 16 units.
  const [rows, d, r, F, N] = dtype ? [6, 20, 5, 64, 32] : [3, 20, 5, 24, 4];
  const whole = (shape: readonly number[]) => constant(shape, 'f32', integers(rng, -2, 2));
  return opCase(
    'unit_choice',
    [whole([rows, d]), whole([r, d]), whole([F, r]), whole([F])],
    ([x, low, logits, bias]) => [
      T.unitChoice(x, low, dtype ? T.packLogits(logits, dtype) : logits, { block: N, bias }),
    ],
    {
      expect: ([x, low, logits, bias]) => [
        nd([rows, F / N], ([row, b]) => {
          const t = Array.from({ length: r }, (_, k) => dot(x, [row], low, [k], d));
          const z = Array.from({ length: N }, (_, n) => {
            const j = b * N + n;
            return t.reduce((sum, v, k) => sum + v * get(logits, [j, k]), get(bias, [j]));
          });
          return z.indexOf(Math.max(...z));
        }),
      ],
      ...(dtype ? { note: `strips ${dtype}` } : {}),
    },
  );
}

export function quantCases(rng: Rng): OpCase[] {
  const units = (['q8', 'q4', 'bf16', 'f32'] as const).flatMap((type) =>
    [false, true].flatMap((gated) => unitCase(rng, { type, gated, columns: gated !== (type === 'q8') })),
  );
  return [...weightCases(rng), ...units, ...([null, 'f32', 'bf16'] as const).map((t) => choiceCase(rng, t))];
}
