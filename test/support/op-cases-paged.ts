// Cases of paged state. Every token of every sequence is a row of the pass, so attention over pages must be causal
// attention of each sequence by itself.
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import { type CaseInput, constant, get, type Nd, nd, normals, type OpCase, opCase } from './op-cases-build.ts';

export const PAGE = 32;

interface Setup {
  readonly lengths: readonly number[];
  readonly heads: number;
  readonly kvHeads: number;
  readonly width: number;
  readonly window: number;
  readonly bias: number;
}

export type RowOf = [number, number];

/** [sequence, position] of each row; the last row stands for nothing. */
export const rowsOf = (lengths: readonly number[]): RowOf[] => [
  ...lengths.flatMap((n, q) => Array.from({ length: n }, (_, t): RowOf => [q, t])),
  [-1, 0],
];

function attend(s: Setup, rows: readonly [number, number][], qkv: Nd, bias: Nd | null): Nd {
  const { heads, kvHeads, width: d, window } = s;
  const row = (q: number, t: number): number => rows.findIndex(([a, b]) => a === q && b === t);
  const element = (r: number, h: number, k: number): number => get(qkv, [r, h, k]);
  return nd([rows.length, heads, d], ([r, h, k]) => {
    const [q, t] = rows[r];
    if (q < 0) return 0;
    const kv = Math.floor(h / (heads / kvHeads));
    let [total, mixed] = [0, 0];
    for (let j = window ? Math.max(0, t - window + 1) : 0; j <= t; j++) {
      let dot = 0;
      for (let e = 0; e < d; e++) dot += element(r, h, e) * element(row(q, j), heads + kv, e);
      const b = bias ? get(bias, [h, Math.max(0, s.bias - 1 - (t - j))]) : 0;
      const w = Math.exp(dot / Math.sqrt(d) + b);
      total += w;
      mixed += w * element(row(q, j), heads + kvHeads + kv, k);
    }
    return mixed / total;
  });
}

/** Page table (pages from the last to the first), sequences and positions of the rows. */
export function indexInputs(lengths: readonly number[], rows: readonly RowOf[]): CaseInput[] {
  const each = Math.ceil(Math.max(...lengths) / PAGE);
  const pages = lengths.length * each;
  return [
    constant([lengths.length, each], 'i32', (k) => pages - 1 - k),
    constant([rows.length], 'i32', (k) => rows[k][0]),
    constant([rows.length], 'i32', (k) => rows[k][1]),
  ];
}

export const indexOf = ([table, sequence, position]: readonly T.Tensor[]): T.RowIndex => ({
  table,
  sequence,
  position,
  reach: position,
  page: PAGE,
});

export function pagedCases(rng: Rng): OpCase[] {
  const setups: Setup[] = [
    { lengths: [5], heads: 1, kvHeads: 1, width: 4, window: 0, bias: 0 },
    { lengths: [3, 40], heads: 4, kvHeads: 2, width: 8, window: 0, bias: 7 },
    { lengths: [33, 2], heads: 2, kvHeads: 1, width: 20, window: 3, bias: 0 },
  ];
  const cases: OpCase[] = [];
  for (const s of setups) {
    const rows = rowsOf(s.lengths);
    const R = rows.length;
    const all = s.heads + 2 * s.kvHeads;
    const inputs = [
      ...indexInputs(s.lengths, rows),
      constant([R, all, s.width], 'f32', normals(rng)),
      ...(s.bias ? [constant([s.heads, s.bias], 'f32', normals(rng))] : []),
    ];
    const run = ([table, sequence, position, qkv, bias]: readonly T.Tensor[], apart: boolean): T.Tensor[] => {
      const at = indexOf([table, sequence, position]);
      const pages = at.table.size;
      const bytes = T.pageBytes(s.kvHeads, s.width, PAGE, 'f32');
      const pool = T.zeros(qkv.device, [pages, bytes], 'u8');
      const options = { ...s, format: 'f32', bias: bias ?? null } as const;
      if (!apart) return [T.pagedSelfAttention(qkv, pool, at, options)];
      const [q, k, v] = T.split(qkv, [s.heads, s.kvHeads, s.kvHeads], 1);
      T.pagedAppend(pool, k, v, at, options);
      return [T.pagedAttention(q, pool, at, options)];
    };
    const expect = ([, , , qkv, bias]: readonly Nd[]): Nd[] => [attend(s, rows, qkv, bias ?? null)];
    cases.push(opCase('paged_attention', inputs, (x) => run(x, false), { expect }));
    cases.push(opCase('paged_append', inputs, (x) => run(x, true), { expect }));
  }
  const s = setups[2];
  const rows = rowsOf(s.lengths);
  const x = constant([rows.length, 3], 'f32', normals(rng));
  for (const [op, back] of [
    ['paged_write', 0],
    ['paged_read', 2],
  ] as const)
    cases.push(
      opCase(
        op,
        [...indexInputs(s.lengths, rows), x],
        ([table, sequence, position, v]) => {
          const at = indexOf([table, sequence, position]);
          const pool = T.zeros(v.device, [at.table.size, PAGE, 3]);
          T.pagedWrite(pool, v, at);
          return [T.pagedRead(pool, at, back)];
        },
        {
          expect: ([, , , v]) => [
            nd([rows.length, 3], ([r, k]) => {
              const [q, t] = rows[r];
              return q < 0 || t < back ? 0 : get(v, [r - back, k]);
            }),
          ],
        },
      ),
    );
  return cases;
}
