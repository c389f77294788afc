// Cases of paged state: sequences whose pages lie anywhere in the pool, rows of several sequences in one pass.
import type { ElementType } from '../../../src/backend/dtype.ts';
import { paged as refPaged } from '../../../src/backend/ref/paged.ts';
import { CACHE_FORMATS, pageBytes } from '../../../src/tensor/ops/paged.ts';
import { EXACT, gaussian, input, makeCase, output, type Rng, tolerance, updated } from './build.ts';
import type { CaseGenerator, KernelCase, TensorSpec } from './types.ts';

export interface Problem {
  readonly format: number;
  readonly Hkv: number;
  readonly group: number;
  readonly D: number;
  readonly page: number;
  /** Tokens that each sequence has. */
  readonly lengths: readonly number[];
  /** Rows of the pass: sequence and position. */
  readonly rows: readonly (readonly [number, number])[];
  readonly window: number;
  readonly bias: number;
  /** Keys of one block only, and how many before the row's own it lies. */
  readonly block: number;
  readonly back: number;
  readonly ahead: boolean;
  readonly q: ElementType;
  readonly out: ElementType;
}

/** A page table over a pool in which the sequences' pages are shuffled. */
export function pages(rng: Rng, { lengths, page }: Problem): { table: TensorSpec; maxPages: number; count: number } {
  const maxPages = Math.max(1, ...lengths.map((n) => Math.ceil(n / page)));
  const count = lengths.length * maxPages + 2;
  const order = rng.shuffled(Array.from({ length: count }, (_, k) => k));
  return { table: input('i32', lengths.length * maxPages, (k) => order[k]), maxPages, count };
}

export const ints = (values: readonly number[]): TensorSpec => input('i32', values.length, (k) => values[k]);

/** The bytes of a pool into which every token of every sequence was written. */
export function fill(rng: Rng, s: Problem, table: TensorSpec, maxPages: number, count: number): Uint8Array {
  const pool = new Uint8Array(count * pageBytes(s.Hkv, s.D, s.page, CACHE_FORMATS[s.format]));
  const tokens = s.lengths.flatMap((n, q) => Array.from({ length: n }, (_, t) => [q, t] as const));
  const tok = s.Hkv * s.D;
  const [k, v] = [0, 1].map(() => gaussian(rng, 'f32', tokens.length * tok).data!);
  const [sequence, position] = [0, 1].map((side) => Int32Array.from(tokens, (t) => t[side]));
  refPaged.paged_append({
    p: [pool, k, v, table.data, sequence, position],
    i: [tokens.length, s.Hkv, s.D, s.page, maxPages, s.format, tok, tok],
  } as unknown as Parameters<typeof refPaged.paged_append>[0]);
  return pool;
}

export const bytes = (data: Uint8Array): TensorSpec => ({ dtype: 'u8', length: data.length, data, role: 'in' });

function attend(rng: Rng, s: Problem): KernelCase {
  const { table, maxPages, count } = pages(rng, s);
  const pool = fill(rng, s, table, maxPages, count);
  const [R, H] = [s.rows.length, s.Hkv * s.group];
  const reach = s.rows.map(([q, t]) => (s.ahead && q >= 0 ? rng.int(t, s.lengths[q] - 1) : t));
  return makeCase('paged_attention', {
    p: [
      output(s.out, R * H * s.D),
      gaussian(rng, s.q, R * H * s.D),
      bytes(pool),
      s.bias ? gaussian(rng, 'f32', H * s.bias) : null,
      table,
      ints(s.rows.map(([q]) => q)),
      ints(s.rows.map(([, t]) => t)),
      ints(reach),
      ...(rng.chance(0.3) ? [output('f32', R * H)] : []),
    ],
    i: [R, H, s.Hkv, s.D, s.page, maxPages, s.format, H * s.D, H * s.D, s.window, s.bias, s.block, s.back],
    f: [1 / Math.sqrt(s.D)],
    tolerance: tolerance(2e-4, 2e-5, 1e-5),
  });
}

/** Rows within and behind what the pool has of their sequences. */
function choose(rng: Rng, s: Problem): KernelCase {
  const { table, maxPages, count } = pages(rng, s);
  const width = s.D + 1;
  return makeCase('paged_choose', {
    p: [
      output('f32', s.rows.length * width),
      gaussian(rng, 'f32', s.rows.length * width),
      gaussian(rng, 'f32', count * s.page * width),
      table,
      ints(s.rows.map(([q]) => q)),
      ints(s.rows.map(([, t]) => t)),
      ints(s.rows.map(([, t]) => Math.max(0, t + rng.int(-5, 5)))),
    ],
    i: [s.rows.length, width, s.page, maxPages],
    tolerance: EXACT,
  });
}

/** Log-sum-exps far from each other, and of parts that see nothing. */
function merge(rng: Rng, s: Problem): KernelCase {
  const n = s.rows.length * s.Hkv * s.group;
  const lse = (): TensorSpec => input('f32', n, () => (rng.chance(0.2) ? -Infinity : 20 * rng.normal()));
  return makeCase('merge_attention', {
    p: [output(s.out, n * s.D), gaussian(rng, s.q, n * s.D), gaussian(rng, s.q, n * s.D), lse(), lse()],
    i: [n, s.D],
    tolerance: tolerance(1e-5, 1e-6),
  });
}

function append(rng: Rng, s: Problem): KernelCase {
  const { table, maxPages, count } = pages(rng, s);
  const tok = s.Hkv * s.D;
  const pool = updated(bytes(new Uint8Array(count * pageBytes(s.Hkv, s.D, s.page, CACHE_FORMATS[s.format]))));
  return makeCase('paged_append', {
    p: [
      pool,
      gaussian(rng, s.q, s.rows.length * tok),
      gaussian(rng, s.q, s.rows.length * tok),
      table,
      ints(s.rows.map(([q]) => q)),
      ints(s.rows.map(([, t]) => t)),
    ],
    i: [s.rows.length, s.Hkv, s.D, s.page, maxPages, s.format, tok, tok],
  });
}

function vectors(kernel: string, rng: Rng, s: Problem): KernelCase {
  const { table, maxPages, count } = pages(rng, s);
  const width = s.D + 1;
  const read = rng.int(1, 4);
  const pool = gaussian(rng, 'f32', count * s.page * width);
  const x =
    kernel === 'paged_write' ? gaussian(rng, s.q, s.rows.length * width) : output(s.out, s.rows.length * read * width);
  return makeCase(kernel, {
    p: [
      ...(kernel === 'paged_write' ? [updated(pool), x] : [x, pool]),
      table,
      ints(s.rows.map(([q]) => q)),
      ints(s.rows.map(([, t]) => t)),
    ],
    i: [s.rows.length, width, s.page, maxPages, ...(kernel === 'paged_read' ? [rng.int(read - 1, 5), read] : [])],
    tolerance: EXACT,
  });
}

/** Decoding rows of many sequences, chunks of prefills, rows that stand for nothing. */
export function problems(rng: Rng): Problem[] {
  const draw = (format: number, long: boolean): Problem => {
    const lengths = Array.from({ length: rng.int(1, 4) }, () => rng.int(1, long ? 700 : 70));
    const rows: [number, number][] = [];
    lengths.forEach((n, q) => {
      const chunk = rng.chance(0.4) ? rng.int(1, Math.min(n, long ? 40 : 24)) : 1;
      for (let t = n - chunk; t < n; t++) rows.push([q, t]);
      if (rng.chance(0.2)) rows.push([-1, 0]);
    });
    return {
      format,
      Hkv: rng.int(1, 3),
      group: rng.pick([1, 1, 2, 4, 7]),
      D: rng.pick([4, 16, 20, 32, 64]),
      page: rng.pick([32, 64]),
      lengths,
      rows,
      window: rng.chance(0.3) ? rng.int(1, 50) : 0,
      bias: rng.chance(0.3) ? rng.int(1, 100) : 0,
      block: rng.chance(0.3) ? rng.int(1, 80) : 0,
      back: rng.int(0, 2),
      ahead: rng.chance(0.2),
      q: rng.pick(['f32', 'bf16'] as const),
      out: rng.pick(['f32', 'bf16'] as const),
    };
  };
  return CACHE_FORMATS.flatMap((_, f) => Array.from({ length: 8 }, (_, k) => draw(f, k % 4 === 0)));
}

const generate: CaseGenerator = (kernel, rng) => {
  const one = { paged_attention: attend, paged_append: append, merge_attention: merge, paged_choose: choose }[kernel];
  return problems(rng).map((s) => (one ? one(rng, s) : vectors(kernel, rng, s)));
};

export const pagedCases: Record<string, CaseGenerator> = Object.fromEntries(
  ['paged_append', 'paged_attention', 'merge_attention', 'paged_choose', 'paged_write', 'paged_read'].map((k) => [
    k,
    generate,
  ]),
);
