// Cases for the simple recurrent unit and for rows joined by segment.
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import { constant, FLOATS, float, get, integers, type Nd, nd, normals, type OpCase, opCase } from './op-cases-build.ts';

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));

/** One token after the other, as the definition has it. */
function sequential(x: Nd, z: Nd, initial: Nd | null, seg: Nd | null): Nd[] {
  const [B, length, n] = x.shape;
  const [out, state] = [new Float64Array(B * length * n), new Float64Array(B * length * n)];
  const started = (b: number, t: number, j: number): number => {
    if (initial?.shape.length === 3) return get(initial, [b, t, j]);
    return t === 0 && initial ? get(initial, [b, j]) : 0;
  };
  for (let b = 0; b < B; b++) {
    const c = new Array<number>(n).fill(0);
    for (let t = 0; t < length; t++) {
      const begins = t === 0 || (seg && get(seg, [b, t]) !== get(seg, [b, t - 1]));
      if (begins) for (let j = 0; j < n; j++) c[j] = started(b, t, j);
      for (let j = 0; j < n; j++) {
        const [r, f, y] = [0, 1, 2].map((part) => get(z, [b, t, part * n + j]));
        c[j] = sigmoid(f) * c[j] + (1 - sigmoid(f)) * y;
        state[(b * length + t) * n + j] = c[j];
        out[(b * length + t) * n + j] = sigmoid(r) * c[j] + Math.sqrt(3) * (1 - sigmoid(r)) * get(x, [b, t, j]);
      }
    }
  }
  return [
    { shape: x.shape, data: out },
    { shape: x.shape, data: state },
  ];
}

export function scanCases(rng: Rng): OpCase[] {
  return [...units(rng), ...joins(rng)];
}

function units(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [B, length, n, large] of [
    [1, 1, 1, false],
    [2, 5, 3, false],
    [1, 4, 2, false],
    [0, 3, 2, false],
    [3, 70, 33, true],
  ] as [number, number, number, boolean][])
    for (const dtype of FLOATS)
      for (const [initial, seg] of [
        ['', false],
        ['row', false],
        ['', true],
        ['row', true],
        ['token', true],
      ] as ['' | 'row' | 'token', boolean][])
        cases.push(
          opCase(
            'sru',
            [
              float([B, length, n], dtype, normals(rng)),
              float([B, length, 3 * n], dtype, normals(rng)),
              ...(initial ? [float(initial === 'row' ? [B, n] : [B, length, n], 'f32', normals(rng))] : []),
              ...(seg ? [constant([B, length], 'i32', (k) => Math.floor((k % length) / 2))] : []),
            ],
            ([x, z, ...rest]) => {
              const made = T.sru(x, z, {
                initial: initial ? rest[0] : null,
                segments: seg ? rest[rest.length - 1] : null,
              });
              return [made.out, made.state];
            },
            {
              expect: ([x, z, ...rest]) =>
                sequential(x, z, initial ? rest[0] : null, seg ? rest[rest.length - 1] : null),
              large,
              note: `${initial ? `initial state a ${initial} ` : ''}${seg ? 'segments' : ''}`,
            },
          ),
        );
  // Only the last state is used, as between parts of a sequence; and only the outputs.
  const inputs = [float([2, 4, 3], 'f32', normals(rng)), float([2, 4, 9], 'f32', normals(rng))];
  cases.push(
    opCase('sru', inputs, ([x, z]) => [T.slice(T.sru(x, z).state, 1, 3, 4)], { note: 'last state' }),
    opCase('sru', inputs, ([x, z]) => [T.sru(x, z).out], { note: 'outputs' }),
  );
  return cases;
}

function joins(rng: Rng): OpCase[] {
  return [
    [1, 2, 3],
    [2, 5, 4],
    [3, 0, 6],
  ].map(([B, Ta, Tb]) => {
    const N = Ta + Tb;
    return opCase(
      'join_segments',
      [constant([B, Ta], 'i32', integers(rng, 0, 3)), constant([B, Tb], 'i32', integers(rng, 0, 3))],
      ([a, b]) => {
        const j = T.joinSegments(a, b);
        return [j.from, j.segments, j.positions, j.place];
      },
      {
        expect: ([a, b]) => {
          const of = (row: number, k: number): number => (k < Ta ? get(a, [row, k]) : get(b, [row, k - Ta]));
          const order = (row: number): number[] =>
            [1, 2, 3, 0].flatMap((s) => Array.from({ length: N }, (_, k) => k).filter((k) => of(row, k) === s));
          const at = (row: number, i: number): number => of(row, order(row)[i]);
          return [
            nd([B, N], ([row, i]) => row * N + order(row)[i]),
            nd([B, N], ([row, i]) => at(row, i)),
            nd([B, N], ([row, i]) =>
              at(row, i) === 0 ? 0 : i - order(row).findIndex((k) => of(row, k) === at(row, i)),
            ),
            nd([B, Tb], ([row, t]) => row * N + order(row).indexOf(Ta + t)),
          ];
        },
      },
    );
  });
}
