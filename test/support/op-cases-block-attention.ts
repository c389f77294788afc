// Cases for block-sparse attention: blocks as rows, masks, the choice of blocks, attention to them, the gated sum.
import type { DType } from '../../src/backend/dtype.ts';
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import {
  type CaseInput,
  constant,
  FLOATS,
  float,
  get,
  type Nd,
  nd,
  normals,
  type OpCase,
  opCase,
} from './op-cases-build.ts';

export function blockAttentionCases(rng: Rng): OpCase[] {
  return [...unfolds(rng), ...masks(), ...choices(rng), ...attentions(rng), ...gates(rng)];
}

const countOf = (t: number, length: number, stride: number): number =>
  t < length ? 0 : Math.floor((t - length) / stride) + 1;

function unfolds(rng: Rng): OpCase[] {
  return (
    [
      [1, 7, 2, 2, 3, 2],
      [2, 5, 1, 3, 4, 1],
      [1, 2, 1, 2, 3, 1],
      [2, 90, 2, 20, 32, 16],
    ] as number[][]
  ).flatMap(([b, t, h, d, length, stride]) =>
    FLOATS.flatMap((dtype) => {
      const count = countOf(t, length, stride);
      const o = { large: t > 20, note: `${length} every ${stride}` };
      const wide = [b, count, h, length, d];
      const unfold = opCase(
        'unfold_blocks',
        [float([b, t, h, d], dtype, normals(rng))],
        ([x]) => [T.unfoldBlocks(x, length, stride)],
        {
          ...o,
          expect: ([x]) => [nd(wide, ([n, c, head, k, e]) => get(x, [n, c * stride + k, head, e]))],
        },
      );
      const fold = opCase('fold_blocks', [float(wide, dtype, normals(rng))], ([y]) => [T.foldBlocks(y, t, stride)], {
        ...o,
        expect: ([y]) => [
          nd([b, t, h, d], ([n, at, head, e]) => {
            let sum = 0;
            for (let c = 0; c < count; c++)
              if (at >= c * stride && at < c * stride + length) sum += get(y, [n, c, head, at - c * stride, e]);
            return sum;
          }),
        ],
      });
      return [unfold, fold];
    }),
  );
}

const documents = (b: number, t: number): CaseInput => constant([b, t], 'i32', (k) => Math.floor(((k % t) * 3) / t));

function masks(): OpCase[] {
  const visible = (t: number): Nd => nd([2, t], ([, at]) => Math.max(-1, Math.floor((at + 1 - 3) / 2)));
  return [
    opCase('block_masks', [constant([2, 9], 'f32', () => 0)], ([x]) => [T.blockMasks(x, 3, 2).visible], {
      expect: () => [visible(9)],
    }),
    opCase(
      'block_masks',
      [documents(2, 9)],
      ([seg]) => {
        const m = T.blockMasks(seg, 3, 2, seg);
        return [m.visible, m.segments!];
      },
      {
        expect: ([seg]) => [
          visible(9),
          nd([2, 4], ([n, c]) => {
            const of = [0, 1, 2].map((k) => get(seg, [n, 2 * c + k]));
            return of.every((s) => s === of[0]) ? of[0] : -(2 ** 31);
          }),
        ],
        note: 'segments',
      },
    ),
  ];
}

interface Choice {
  readonly b: number;
  readonly t: number;
  readonly h: number;
  readonly hkv: number;
  readonly d: number;
  readonly n: number;
  readonly segments: boolean;
}

const BLOCKS = { length: 4, stride: 2, size: 6, initial: 1, local: 2 };

/** Importances by equations 8 to 10 of the paper, which counts blocks from 1. */
function importances([q, kc]: readonly Nd[], s: Choice): (b: number, t: number, g: number) => number[] {
  const { length: l, stride, size } = BLOCKS;
  return (b, t, g) => {
    const out = new Array<number>(Math.ceil(s.t / size)).fill(0);
    for (let h = (g * s.h) / s.hkv; h < ((g + 1) * s.h) / s.hkv; h++) {
      const seen = countOf(t + 1, l, stride);
      const e = Array.from({ length: seen }, (_, c) => {
        let dot = 0;
        for (let k = 0; k < s.d; k++) dot += get(q, [b, t, h, k]) * get(kc, [b, c, g, k]);
        return Math.exp(dot / Math.sqrt(s.d));
      });
      const total = e.reduce((x, y) => x + y, 0);
      for (let j = 1; j <= out.length; j++)
        for (let m = 0; m < size / stride; m++)
          for (let n = 0; n < l / stride; n++) {
            const i = (size / stride) * j - m - n;
            if (i >= 1 && i <= seen) out[j - 1] += e[i - 1] / total;
          }
    }
    return out;
  };
}

function choices(rng: Rng): OpCase[] {
  const sizes: Choice[] = [
    { b: 1, t: 29, h: 2, hkv: 1, d: 3, n: 3, segments: false },
    { b: 2, t: 40, h: 4, hkv: 2, d: 4, n: 4, segments: false },
    { b: 2, t: 40, h: 2, hkv: 2, d: 4, n: 4, segments: true },
    { b: 1, t: 3, h: 1, hkv: 1, d: 2, n: 3, segments: false },
  ];
  return sizes.flatMap((s) =>
    FLOATS.map((dtype) => {
      const count = countOf(s.t, BLOCKS.length, BLOCKS.stride);
      const inputs = [
        constant([s.b, s.t, s.h, s.d], dtype, normals(rng)),
        constant([s.b, count, s.hkv, s.d], dtype, normals(rng)),
        ...(s.segments ? [documents(s.b, s.t)] : []),
      ];
      const run: OpCase['run'] = ([q, kc, seg]) => {
        const { length, stride } = BLOCKS;
        const { visible, segments } = T.blockMasks(q, length, stride, seg ?? null);
        const masked = { causal: true, visible, segments: seg ?? null, keySegments: segments };
        const { lse } = T.attentionWithLse(q, kc, kc, masked);
        const o = { ...BLOCKS, n: s.n, segments: seg ?? null, blockSegments: segments };
        return [T.blockSelect(q, kc, lse, o), T.cast(T.blockImportance(q, kc, lse, o), dtype)];
      };
      const expect = (x: readonly Nd[]): Nd[] => {
        const blocks = Math.ceil(s.t / BLOCKS.size);
        const of = importances(x, s);
        const list = (b: number, t: number, g: number): number[] => {
          const [own, value] = [Math.floor(t / BLOCKS.size), of(b, t, g)];
          const rank = (j: number): number => (j === 0 || j >= own - 1 ? Infinity : value[j]);
          const order = Array.from({ length: own + 1 }, (_, j) => j).sort((i, j) => rank(j) - rank(i) || i - j);
          return order.slice(0, s.n).sort((i, j) => i - j);
        };
        return [
          nd([s.b, s.t, s.hkv, s.n], ([b, t, g, k]) => list(b, t, g)[k] ?? -1),
          nd([s.b, s.t, s.hkv, blocks], ([b, t, g, j]) => of(b, t, g)[j]),
        ];
      };
      return opCase('block_select', inputs, run, s.segments ? { note: 'segments' } : { expect });
    }),
  );
}

interface Setup {
  readonly b: number;
  readonly t: number;
  readonly h: number;
  readonly hkv: number;
  readonly d: number;
  readonly size: number;
  readonly n: number;
  readonly dtype: DType;
  readonly segments: boolean;
  readonly large: boolean;
}

function attentions(rng: Rng): OpCase[] {
  const plain = { b: 1, t: 7, h: 2, hkv: 1, d: 3, size: 2, n: 2, dtype: 'f32', segments: false, large: false } as const;
  const setups: Setup[] = [
    plain,
    { ...plain, b: 2, t: 6, h: 4, hkv: 2, segments: true },
    { ...plain, t: 5, size: 3, n: 4, dtype: 'bf16' },
    { ...plain, t: 1, h: 1, size: 8, n: 1 },
    { ...plain, b: 0 },
    ...FLOATS.map((dtype) => ({ ...plain, t: 150, h: 4, hkv: 2, d: 32, size: 16, n: 4, dtype, large: true })),
    { ...plain, b: 2, t: 130, h: 6, d: 20, size: 64, n: 2, segments: true, large: true },
  ];
  return setups.map((s) => {
    const index = constant([s.b, s.t, s.hkv, s.n], 'i32', listed(rng, s));
    const inputs = [
      ...[s.h, s.hkv, s.hkv].map((heads) => float([s.b, s.t, heads, s.d], s.dtype, normals(rng))),
      ...[index, ...(s.segments ? [documents(s.b, s.t)] : [])],
    ];
    const run: OpCase['run'] = ([q, k, v, list, seg]) => [
      T.blockAttention(q, k, v, list, { size: s.size, segments: seg ?? null }),
    ];
    return opCase('block_attention', inputs, run, {
      expect: (x) => [naive(s, x)],
      large: s.large,
      slack: s.dtype === 'bf16' ? 1e-2 : 1e-6,
      note: `blocks of ${s.size}${s.segments ? ' segments' : ''}`,
    });
  });
}

/** Lists of the query's own block and some before it, ascending. */
function listed(rng: Rng, s: Setup): (k: number) => number {
  let list: number[] = [];
  return (k) => {
    if (k % s.n === 0) {
      const own = Math.floor((Math.floor(k / (s.n * s.hkv)) % s.t) / s.size);
      const others = rng.shuffled(Array.from({ length: own }, (_, j) => j));
      list = [own, ...others].slice(0, s.n).sort((i, j) => i - j);
    }
    return list[k % s.n] ?? -1;
  };
}

function naive(s: Setup, [q, k, v, index, seg]: readonly Nd[]): Nd {
  return nd(q.shape, ([b, t, h, c]) => {
    const g = Math.floor(h / (s.h / s.hkv));
    const blocks = Array.from({ length: s.n }, (_, n) => get(index, [b, t, g, n]));
    let [sum, total] = [0, 0];
    for (let j = 0; j <= t; j++) {
      if (!blocks.includes(Math.floor(j / s.size)) || (seg && get(seg, [b, t]) !== get(seg, [b, j]))) continue;
      let dot = 0;
      for (let e = 0; e < s.d; e++) dot += get(q, [b, t, h, e]) * get(k, [b, j, g, e]);
      const p = Math.exp(dot / Math.sqrt(s.d));
      total += p;
      sum += p * get(v, [b, j, g, c]);
    }
    return total === 0 ? 0 : sum / total;
  });
}

function gates(rng: Rng): OpCase[] {
  return (
    [
      [1, 2, 2, 3],
      [2, 3, 1, 5],
      [0, 2, 1, 2],
      [2, 40, 4, 20],
    ] as number[][]
  ).flatMap(([b, t, h, d]) =>
    FLOATS.map((dtype) => {
      const inputs = [
        ...[1, 2, 3].map(() => float([b, t, h, d], dtype, normals(rng))),
        float([b, t, 3, h], 'f32', normals(rng)),
      ];
      return opCase('gate_branches', inputs, ([x, y, z, gate]) => [T.gateBranches([x, y, z], gate)], {
        expect: ([x, y, z, gate]) => [
          nd([b, t, h, d], (at) =>
            [x, y, z].reduce((sum, branch, k) => sum + get(gate, [at[0], at[1], k, at[2]]) * get(branch, at), 0),
          ),
        ],
        large: t > 20,
      });
    }),
  );
}
