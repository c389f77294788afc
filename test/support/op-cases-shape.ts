// Cases for ops that move values without changing them.
import type { DType } from '../../src/backend/dtype.ts';
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import { FLOATS, float, get, integers, type Nd, nd, normals, type OpCase, opCase, sizeOf } from './op-cases-build.ts';

export function shapeCases(rng: Rng): OpCase[] {
  return [reshapes, permutes, expands, slices, pads, concats].flatMap((make) => make(rng));
}

const draw = (rng: Rng, shape: readonly number[], dtype: DType = 'f32') => float(shape, dtype, normals(rng));
const same = ([x]: readonly Nd[], shape: readonly number[]): Nd[] => [{ shape, data: x.data }];

function reshapes(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [from, to] of [
    [
      [3, 4],
      [2, 6],
    ],
    [[3, 4], [12]],
    [[1], []],
    [[], [1, 1]],
    [
      [2, 0],
      [0, 5],
    ],
  ])
    for (const dtype of FLOATS)
      cases.push(
        opCase('reshape', [draw(rng, from, dtype)], ([x]) => [T.reshape(x, to)], {
          expect: (x) => same(x, to),
          note: `to [${to}]`,
        }),
      );
  cases.push(
    opCase('reshape', [draw(rng, [2, 3, 4])], ([x]) => [T.reshape(x, [-1, 6])], { expect: (x) => same(x, [4, 6]) }),
    // Views of views, read by ops that are not views.
    opCase('reshape', [draw(rng, [2, 6])], ([x]) => [T.square(T.reshape(T.reshape(x, [3, 4]), [12]))], {
      expect: ([x]) => [{ shape: [12], data: Float64Array.from(x.data, (v) => v * v) }],
      note: 'twice, then square',
    }),
  );
  return cases;
}

function permutes(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [shape, order] of [
    [
      [3, 4],
      [1, 0],
    ],
    [
      [2, 3, 4],
      [2, 0, 1],
    ],
    [
      [2, 3, 4],
      [0, 2, 1],
    ],
    [
      [2, 1, 3, 2],
      [3, 1, 0, 2],
    ],
    [
      [2, 0, 3],
      [1, 2, 0],
    ],
    [[5], [0]],
    [[], []],
    [
      [2, 3, 1, 2, 2],
      [4, 2, 3, 0, 1],
    ],
  ])
    for (const dtype of FLOATS) {
      const expect = ([x]: readonly Nd[]): Nd[] => [
        nd(
          order.map((a) => shape[a]),
          (index) => {
            const from = shape.map(() => 0);
            order.forEach((a, k) => {
              from[a] = index[k];
            });
            return get(x, from);
          },
        ),
      ];
      cases.push(
        opCase('permute', [draw(rng, shape, dtype)], ([x]) => [T.permute(x, order)], { expect, note: `[${order}]` }),
      );
    }
  cases.push(
    opCase('permute', [draw(rng, [2, 3, 4])], ([x]) => [T.transpose(x)], {
      expect: ([x]) => [nd([2, 4, 3], ([a, b, c]) => get(x, [a, c, b]))],
      note: 'transpose',
    }),
    opCase('permute', [draw(rng, [2, 3, 4])], ([x]) => [T.transpose(x, 0, -1)], {
      expect: ([x]) => [nd([4, 3, 2], ([a, b, c]) => get(x, [c, b, a]))],
      note: 'transpose 0 -1',
    }),
    opCase('permute', [draw(rng, [37, 5, 29], 'bf16')], ([x]) => [T.permute(x, [2, 1, 0])], { large: true }),
  );
  return cases;
}

function expands(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [from, to] of [
    [[], [3]],
    [[4], [3, 4]],
    [
      [3, 1],
      [3, 5],
    ],
    [
      [1, 3, 1],
      [2, 3, 4],
    ],
    [
      [2, 1, 1, 2],
      [2, 3, 2, 2],
    ],
    [[1], [0]],
  ])
    for (const dtype of FLOATS)
      cases.push(
        opCase('expand', [draw(rng, from, dtype)], ([x]) => [T.expand(x, to)], {
          expect: ([x]) => [nd(to, (index) => get(x, index))],
          note: `to [${to}]`,
        }),
      );
  cases.push(
    opCase('expand', [draw(rng, [3, 1])], ([x]) => [T.broadcastTo(x, [3, 2])], {
      expect: ([x]) => [nd([3, 2], (index) => get(x, index))],
      note: 'broadcastTo',
    }),
  );
  return cases;
}

function slices(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [shape, axis, begin, end, step] of [
    [[6], 0, 1, 5, 1],
    [[7], 0, 0, 7, 3],
    [[3, 5], 1, -3, 5, 1],
    [[3, 5], 0, 1, -1, 1],
    [[2, 6, 3], -2, 1, 6, 2],
    [[2, 3, 4], 2, 3, 4, 1],
    [[4, 2], 0, 2, 2, 1],
    [[4, 2], 0, 9, 12, 1],
    [[0, 3], 1, 1, 2, 1],
  ] as [number[], number, number, number, number][])
    for (const dtype of FLOATS) {
      const a = axis < 0 ? axis + shape.length : axis;
      const n = shape[a];
      const [from, to] = [begin, end].map((v) => Math.max(0, Math.min(n, v < 0 ? v + n : v)));
      const picks: number[] = [];
      for (let k = from; k < to; k += step) picks.push(k);
      const expect = ([x]: readonly Nd[]): Nd[] => [
        nd(
          shape.map((d, k) => (k === a ? picks.length : d)),
          (index) =>
            get(
              x,
              index.map((i, k) => (k === a ? picks[i] : i)),
            ),
        ),
      ];
      cases.push(
        opCase('slice', [draw(rng, shape, dtype)], ([x]) => [T.slice(x, axis, begin, end, step)], {
          expect,
          note: `axis ${axis} ${begin}:${end}:${step}`,
        }),
      );
    }
  cases.push(
    opCase('slice', [draw(rng, [2, 7])], ([x]) => T.split(x, [3, 0, 4], 1), {
      expect: ([x]) => [
        nd([2, 3], ([r, c]) => get(x, [r, c])),
        nd([2, 0], () => 0),
        nd([2, 4], ([r, c]) => get(x, [r, c + 3])),
      ],
      note: 'split 3 0 4',
    }),
    opCase('slice', [draw(rng, [3, 4])], ([x]) => [T.reshape(T.slice(x, 0, 1), [8])], {
      expect: ([x]) => [{ shape: [8], data: Array.from(x.data).slice(4) }],
      note: 'then a view',
    }),
    opCase('slice', [draw(rng, [211, 33])], ([x]) => [T.slice(x, 1, 1, 33, 2)], { large: true }),
  );
  return cases;
}

/** Padding is the row `embed`, as is the gradient of slice. */
function pads(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [shape, axis, before, after, value] of [
    [[4], 0, 2, 1, 0],
    [[3, 2], 1, 1, 0, -1.5],
    [[2, 3, 2], -2, 0, 2, 7],
    [[2, 0], 1, 1, 1, 3],
    [[2], 0, 0, 0, 1],
  ] as [number[], number, number, number, number][])
    for (const dtype of FLOATS) {
      const a = axis < 0 ? axis + shape.length : axis;
      const expect = ([x]: readonly Nd[]): Nd[] => [
        nd(
          shape.map((d, k) => (k === a ? d + before + after : d)),
          (index) => {
            const i = index[a] - before;
            if (i < 0 || i >= shape[a]) return value;
            return get(
              x,
              index.map((v, k) => (k === a ? i : v)),
            );
          },
        ),
      ];
      cases.push(
        opCase('embed', [draw(rng, shape, dtype)], ([x]) => [T.pad(x, axis, before, after, value)], {
          expect,
          note: `pad axis ${axis} ${before} ${after}`,
        }),
      );
    }
  return cases;
}

function concats(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [axis, ...shapes] of [
    [0, [2], [3]],
    [1, [2, 3], [2, 1], [2, 2]],
    [0, [1, 3], [2, 3]],
    [-1, [2, 1, 2], [2, 1, 3]],
    [1, [2, 0, 2], [2, 3, 2], [2, 1, 2], [2, 0, 2]],
    [0, [4, 2]],
    [0, [0], [0]],
  ] as [number, ...number[][]][])
    for (const dtype of FLOATS) {
      const a = axis < 0 ? axis + shapes[0].length : axis;
      const total = shapes.reduce((n, s) => n + s[a], 0);
      const expect = (x: readonly Nd[]): Nd[] => [
        nd(
          shapes[0].map((d, k) => (k === a ? total : d)),
          (index) => {
            let [at, part] = [index[a], 0];
            while (at >= shapes[part][a]) at -= shapes[part++][a];
            return get(
              x[part],
              index.map((v, k) => (k === a ? at : v)),
            );
          },
        ),
      ];
      const inputs = shapes.map((s) => draw(rng, s, dtype));
      cases.push(opCase('concat', inputs, (x) => [T.concat(x, axis)], { expect, note: `axis ${axis}` }));
    }
  const stacked = [0, 1, 2].map(() => draw(rng, [2, 3]));
  for (const axis of [0, 1, 2])
    cases.push(
      opCase('concat', stacked, (x) => [T.stack(x, axis)], {
        expect: (x) => [nd([2, 3].toSpliced(axis, 0, 3), (index) => get(x[index[axis]], index.toSpliced(axis, 1)))],
        note: `stack ${axis}`,
      }),
    );
  const ids = { shape: [3], dtype: 'i32', grad: false, data: Array.from({ length: 3 }, integers(rng, 0, 9)) } as const;
  cases.push(
    opCase('concat', [ids, ids], (x) => [T.concat(x, 0)], {
      expect: ([a, b]) => [{ shape: [6], data: [...Array.from(a.data), ...Array.from(b.data)] }],
    }),
    // The same tensor twice: its gradient is the sum of both parts.
    opCase('concat', [draw(rng, [2, 2])], ([x]) => [T.concat([x, x], 1)], {
      expect: ([x]) => [nd([2, 4], ([r, c]) => get(x, [r, c % 2]))],
      note: 'of one tensor twice',
    }),
  );
  if (cases.some((c) => c.inputs.some((x) => x.data.length !== sizeOf(x.shape)))) throw new Error('malformed case');
  return cases;
}
