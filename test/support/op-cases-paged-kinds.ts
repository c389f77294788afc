// Cases of the other ways to look back over pages: convolutions, chosen blocks, hashed tokens, two texts at once. Every
// token of every sequence is a row of the pass.
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import { constant, get, type Nd, nd, normals, type OpCase, opCase } from './op-cases-build.ts';
import { indexInputs, indexOf, PAGE, type RowOf, rowsOf } from './op-cases-paged.ts';

const LENGTHS = [3, 70];

type Run = (x: readonly T.Tensor[]) => T.Tensor[];

/** The row of a token. */
const rowAt = (rows: readonly RowOf[], q: number, t: number): number => rows.findIndex(([a, b]) => a === q && b === t);

function convolution(rng: Rng, rows: readonly RowOf[]): OpCase {
  const [R, C, taps] = [rows.length, 5, 40];
  const inputs = [
    ...indexInputs(LENGTHS, rows),
    constant([R, C], 'f32', normals(rng)),
    constant([taps, C], 'f32', normals(rng, 0.2)),
    constant([C], 'f32', normals(rng)),
  ];
  const run: Run = ([table, sequence, position, v, h, beta]) => {
    const at = indexOf([table, sequence, position]);
    const pool = T.zeros(v.device, [table.size, PAGE, C]);
    T.pagedWrite(pool, v, at);
    return [T.pagedConv(pool, h, at, { beta })];
  };
  const expect = ([, , , v, h, beta]: readonly Nd[]): Nd[] => [
    nd([R, C], ([r, c]) => {
      const [q, t] = rows[r];
      if (q < 0) return 0;
      let sum = get(beta, [c]) * get(v, [r, c]);
      for (let j = 0; j < taps && j <= t; j++) sum += get(h, [j, c]) * get(v, [rowAt(rows, q, t - j), c]);
      return sum;
    }),
  ];
  return opCase('paged_conv', inputs, run, { expect });
}

function twoTexts(rng: Rng, rows: readonly RowOf[]): OpCase {
  const [R, H, Hkv, D] = [rows.length, 4, 2, 8];
  const packed = () => constant([R, H + 2 * Hkv, D], 'f32', normals(rng));
  // All of a sequence's own kind of memory: as many tokens as it has itself.
  const last = constant([R], 'i32', (k) => (rows[k][0] < 0 ? 0 : LENGTHS[rows[k][0]] - 1));
  const inputs = [...indexInputs(LENGTHS, rows), last, packed(), packed()];
  const run: Run = ([table, sequence, position, reach, own, other]) => {
    const at = indexOf([table, sequence, position]);
    const options = { heads: H, kvHeads: Hkv, width: D, format: 'f32' } as const;
    const [q, ...parts] = [own, other]
      .map((x) => T.split(x, [H, Hkv, Hkv], 1))
      .flatMap(([a, k, v], n) => (n ? [k, v] : [a, k, v]));
    const pools = [parts.slice(0, 2), parts.slice(2)].map(([k, v]) => {
      const pool = T.zeros(own.device, [table.size, T.pageBytes(Hkv, D, PAGE, 'f32')], 'u8');
      T.pagedAppend(pool, k, v, at, options);
      return pool;
    });
    const [first, second] = pools.map((pool, n) => ({ q, pool, rows: n ? { ...at, reach } : at, options }));
    return [T.pagedAttentionOfTwo(first, second)];
  };
  const expect = ([, , , , own, other]: readonly Nd[]): Nd[] => [
    nd([R, H, D], ([r, h, d]) => {
      const [q, t] = rows[r];
      if (q < 0) return 0;
      const kv = Math.floor(h / (H / Hkv));
      let [total, mixed] = [0, 0];
      for (const [x, end] of [
        [own, t],
        [other, LENGTHS[q] - 1],
      ] as const)
        for (let j = 0; j <= end; j++) {
          const key = rowAt(rows, q, j);
          let dot = 0;
          for (let e = 0; e < D; e++) dot += get(own, [r, h, e]) * get(x, [key, H + kv, e]);
          const w = Math.exp(dot / Math.sqrt(D));
          total += w;
          mixed += w * get(x, [key, H + Hkv + kv, d]);
        }
      return mixed / total;
    }),
  ];
  return opCase('merge_attention', inputs, run, { expect });
}

function given(rng: Rng, rows: readonly RowOf[]): OpCase {
  const [R, width] = [rows.length, 3];
  const reach = constant([R], 'i32', () => 10);
  const inputs = [...indexInputs(LENGTHS, rows), reach, ...[0, 1].map(() => constant([R, width], 'f32', normals(rng)))];
  const run: Run = ([table, sequence, position, last, x, memory]) => {
    const at = { ...indexOf([table, sequence, position]), reach: last };
    const pool = T.zeros(x.device, [table.size, PAGE, width]);
    T.pagedWrite(pool, memory, at);
    return [T.pagedChoose(x, pool, at)];
  };
  const expect = ([, , , , x, memory]: readonly Nd[]): Nd[] => [
    nd([R, width], ([r, k]) => get(rows[r][0] >= 0 && rows[r][1] <= 10 ? memory : x, [r, k])),
  ];
  return opCase('paged_choose', inputs, run, { expect });
}

/** Blocks that are the mean of their tokens; then the choice by them, and attention to what was chosen. */
function blocks(rng: Rng, rows: readonly RowOf[]): OpCase[] {
  const [R, H, Hkv, D, length, stride, size, n] = [rows.length, 4, 2, 8, 6, 3, 6, 4];
  const inputs = [
    ...indexInputs(LENGTHS, rows),
    constant([R, H + 2 * Hkv, D], 'f32', normals(rng)),
    constant([1, D, length * D], 'f32', (k) => (Math.floor(k / (length * D)) === k % D ? 1 / length : 0)),
  ];
  const run: Run = ([table, sequence, position, qkv, means]) => {
    const at = indexOf([table, sequence, position]);
    const [q, k, v] = T.split(qkv, [H, Hkv, Hkv], 1);
    const picked = T.pagedBlockRows(at, Hkv, { length, stride });
    const made = [k, v].map((x) => {
      const pool = T.zeros(x.device, [table.size, PAGE, Hkv * D]);
      T.pagedWrite(pool, T.reshape(x, [R, Hkv * D]), at);
      const tokens = T.pagedBlockGather(pool, picked, at, { heads: Hkv, length, out: 'f32' });
      const groups = { offsets: picked.offsets, most: R * Hkv };
      return T.groupedMatmul(T.reshape(tokens, [R * Hkv, length * D]), means, groups, { transB: true });
    });
    const cells = T.zeros(qkv.device, [table.size, T.cellsOf(PAGE, stride), 2 * Hkv * D]);
    T.pagedBlockWrite(cells, made[0], made[1], picked, at, { heads: Hkv, width: D, length, stride });
    const scale = 1 / Math.sqrt(D);
    const choice = { kvHeads: Hkv, length, stride, size, n, initial: 1, local: 1, scale, seen: 1 };
    const { out, index } = T.pagedBlockChoose(q, cells, at, choice);
    const pool = T.zeros(qkv.device, [table.size, T.pageBytes(Hkv, D, PAGE, 'f32')], 'u8');
    T.pagedAppend(pool, k, v, at, { heads: H, kvHeads: Hkv, width: D, format: 'f32' });
    const selected = T.pagedBlockAttention(q, pool, index, at, { kvHeads: Hkv, format: 'f32', size, scale });
    return [out, index, selected, picked.pick];
  };
  return ['rows', 'gather', 'write', 'choose', 'attention'].map((part) => opCase(`paged_block_${part}`, inputs, run));
}

function hashed(rng: Rng, rows: readonly RowOf[]): OpCase[] {
  const [R, H, D, rounds, most] = [rows.length, 2, 4, 3, 9];
  const inputs = [
    ...indexInputs(LENGTHS, rows),
    constant([1, R, 2 * H, D], 'f32', normals(rng)),
    constant([1, H, rounds, R], 'i32', () => rng.int(0, 11)),
  ];
  const run: Run = ([table, sequence, position, qv, buckets]) => {
    const at = indexOf([table, sequence, position]);
    return [true, false].map((hashes) => {
      const pools = {
        tokens: T.zeros(qv.device, [table.size, PAGE, 2 * H * D]),
        buckets: hashes ? T.zeros(qv.device, [table.size, H * rounds, PAGE]) : null,
      };
      T.pagedLshWrite(pools, qv, hashes ? buckets : null, at);
      const options = { rounds, most, chunk: 4, lookBack: 1, fill: true, scale: 1, seen: 1, dedupe: !hashes };
      return T.pagedLshAttention(qv, pools, at, options);
    });
  };
  /** Weights of the tokens in `seen`, latest first. */
  const attend = (qv: Nd, r: number, h: number, d: number, seen: readonly { row: number; n: number }[]): number => {
    const element = (row: number, k: number): number => get(qv, [0, row, h, k]);
    const value = (row: number): number => get(qv, [0, row, H + h, d]);
    if (seen.length === 0) return value(r);
    let [total, mixed] = [0, 0];
    for (const { row, n } of seen) {
      let [dot, square] = [0, 0];
      for (let k = 0; k < D; k++) {
        dot += element(r, k) * element(row, k);
        square += element(row, k) ** 2;
      }
      const w = n * Math.exp(dot / Math.sqrt(square));
      total += w;
      mixed += w * value(row);
    }
    return mixed / total;
  };
  const expect = ([, , , qv, buckets]: readonly Nd[]): Nd[] =>
    [true, false].map((hashes) =>
      nd([R, H, D], ([r, h, d]) => {
        const [q, t] = rows[r];
        if (q < 0) return 0;
        const before = Array.from({ length: t }, (_, k) => rowAt(rows, q, t - 1 - k));
        const first = (Math.floor(t / 4) - 1) * 4;
        if (!hashes)
          return attend(
            qv,
            r,
            h,
            d,
            before.filter((row) => rows[row][1] >= first).map((row) => ({ row, n: 1 })),
          );
        const all = before.map((row) => {
          const same = (k: number): boolean => get(buckets, [0, h, k, row]) === get(buckets, [0, h, k, r]);
          return { row, n: [0, 1, 2].filter(same).length };
        });
        const others = all.filter(({ n }) => n === 0).map(({ row }) => ({ row, n: 1 }));
        return attend(qv, r, h, d, [...all.filter(({ n }) => n > 0), ...others].slice(0, most));
      }),
    );
  return ['write', 'attention'].map((part) => opCase(`paged_lsh_${part}`, inputs, run, { expect }));
}

export function pagedKindCases(rng: Rng): OpCase[] {
  const rows = rowsOf(LENGTHS);
  return [convolution(rng, rows), twoTexts(rng, rows), given(rng, rows), ...blocks(rng, rows), ...hashed(rng, rows)];
}
