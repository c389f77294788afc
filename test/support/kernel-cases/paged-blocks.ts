// Cases of attention to chosen blocks over pages.
import { EXACT, gaussian, input, makeCase, output, type Rng, tolerance, updated } from './build.ts';
import { bytes, fill, ints, type Problem, pages, problems } from './paged.ts';
import type { CaseGenerator, KernelCase, TensorSpec } from './types.ts';

interface Sizes {
  readonly length: number;
  readonly stride: number;
  readonly size: number;
  readonly n: number;
  readonly initial: number;
  readonly local: number;
}

function sizes(rng: Rng): Sizes {
  const stride = rng.pick([1, 3, 4, 16, 48]);
  const [initial, local] = [rng.int(0, 2), rng.int(0, 2)];
  return {
    ...{ stride, length: stride * rng.int(1, 3), size: stride * rng.int(1, 4) },
    ...{ initial, local, n: Math.max(1, initial + local + rng.int(0, 3)) },
  };
}

const index = (s: Problem): [TensorSpec, TensorSpec] => [ints(s.rows.map(([q]) => q)), ints(s.rows.map(([, t]) => t))];

/** Rows at which a block ends. */
const ending = (s: Problem, { length, stride }: Sizes): number[] =>
  s.rows.flatMap(([q, t], r) => (q >= 0 && t + 1 >= length && (t + 1 - length) % stride === 0 ? [r] : []));

const picks = (s: Problem, o: Sizes): TensorSpec => {
  const rows = ending(s, o);
  return ints(s.rows.map((_, k) => rows[k] ?? -1));
};

const make: Record<string, (rng: Rng, s: Problem, o: Sizes) => KernelCase> = {
  paged_block_rows: (_, s, o) =>
    makeCase('paged_block_rows', {
      p: [output('i32', s.rows.length), output('i32', 2), ...index(s)],
      i: [s.rows.length, o.length, o.stride, s.Hkv],
    }),

  paged_block_gather: (rng, s, o) => {
    const { table, maxPages, count } = pages(rng, s);
    const R = s.rows.length;
    const width = s.Hkv * s.D;
    // What lies behind the last block that ends stays as it is.
    return makeCase('paged_block_gather', {
      p: [
        updated(gaussian(rng, s.out, R * o.length * width)),
        gaussian(rng, 'f32', count * s.page * width),
        picks(s, o),
        table,
        ...index(s),
      ],
      i: [R, s.Hkv, s.D, o.length, s.page, maxPages],
      tolerance: EXACT,
    });
  },

  paged_block_write: (rng, s, o) => {
    const { table, maxPages, count } = pages(rng, s);
    const width = s.Hkv * s.D;
    const rows = (): TensorSpec => gaussian(rng, s.q, s.rows.length * width);
    return makeCase('paged_block_write', {
      p: [
        updated(gaussian(rng, 'f32', count * Math.ceil(s.page / o.stride) * 2 * width)),
        rows(),
        rows(),
        picks(s, o),
        table,
        ...index(s),
      ],
      i: [s.rows.length, s.Hkv, s.D, o.length, o.stride, s.page, maxPages],
      tolerance: EXACT,
    });
  },

  paged_block_choose: (rng, s, o) => {
    const { table, maxPages, count } = pages(rng, s);
    const [R, H] = [s.rows.length, s.Hkv * s.group];
    return makeCase('paged_block_choose', {
      p: [
        output(s.out, R * H * s.D),
        output('i32', R * s.Hkv * o.n),
        gaussian(rng, s.q, R * H * s.D),
        gaussian(rng, 'f32', count * Math.ceil(s.page / o.stride) * 2 * s.Hkv * s.D),
        table,
        ...index(s),
      ],
      i: [R, H, s.Hkv, s.D, s.page, maxPages, o.length, o.stride, o.size, o.n, o.initial, o.local],
      f: [1 / Math.sqrt(s.D)],
      tolerance: tolerance(2e-4, 2e-5, 1e-5),
    });
  },

  paged_block_attention: (rng, s, o) => {
    const { table, maxPages, count } = pages(rng, s);
    const pool = fill(rng, s, table, maxPages, count);
    const [R, H] = [s.rows.length, s.Hkv * s.group];
    const lists = s.rows.flatMap(([q, t]) =>
      Array.from({ length: s.Hkv }, () => {
        const all = Array.from({ length: q < 0 ? 0 : Math.floor(t / o.size) + 1 }, (_, j) => j);
        const list = rng.shuffled(all).slice(0, rng.int(0, o.n));
        list.sort((a, b) => a - b);
        return Array.from({ length: o.n }, (_, k) => list[k] ?? -1);
      }).flat(),
    );
    return makeCase('paged_block_attention', {
      p: [
        output(s.out, R * H * s.D),
        gaussian(rng, s.q, R * H * s.D),
        bytes(pool),
        input('i32', lists.length, (k) => lists[k]),
        table,
        ...index(s),
      ],
      i: [R, H, s.Hkv, s.D, s.page, maxPages, s.format, o.size, o.n],
      f: [1 / Math.sqrt(s.D)],
      tolerance: tolerance(2e-4, 2e-5, 1e-5),
    });
  },
};

const generate: CaseGenerator = (kernel, rng) => problems(rng).map((s) => make[kernel](rng, s, sizes(rng)));

export const pagedBlockCases: Record<string, CaseGenerator> = Object.fromEntries(
  Object.keys(make).map((kernel) => [kernel, generate]),
);
