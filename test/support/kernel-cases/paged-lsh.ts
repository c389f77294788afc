// Cases of hashed attention over pages.
import { gaussian, input, makeCase, output, type Rng, tolerance, updated } from './build.ts';
import { ints, type Problem, pages, problems } from './paged.ts';
import type { CaseGenerator, KernelCase, TensorSpec } from './types.ts';

const index = (s: Problem): [TensorSpec, TensorSpec] => [ints(s.rows.map(([q]) => q)), ints(s.rows.map(([, t]) => t))];

function write(rng: Rng, s: Problem): KernelCase {
  const { table, maxPages, count } = pages(rng, s);
  const [R, H, rounds, hashes] = [s.rows.length, s.Hkv, rng.int(1, 4), rng.chance(0.7)];
  return makeCase('paged_lsh_write', {
    p: [
      updated(gaussian(rng, 'f32', count * s.page * 2 * H * s.D)),
      hashes ? updated(gaussian(rng, 'f32', count * H * rounds * s.page)) : null,
      gaussian(rng, s.q, R * 2 * H * s.D),
      hashes ? input('i32', H * rounds * R, () => rng.int(0, 300)) : null,
      table,
      ...index(s),
    ],
    i: [R, H, s.D, s.page, maxPages, rounds],
    tolerance: tolerance(1e-6, 1e-6),
  });
}

function attend(rng: Rng, s: Problem): KernelCase {
  const { table, maxPages, count } = pages(rng, s);
  const [R, H, rounds] = [s.rows.length, s.Hkv, rng.int(1, 5)];
  // One bucket, some, and so many that hardly any two tokens share one.
  const kinds = rng.pick([1, 4, 16, 1000]);
  const chunk = rng.int(1, 40);
  const back = rng.int(0, 2);
  return makeCase('paged_lsh_attention', {
    p: [
      output(s.out, R * H * s.D),
      gaussian(rng, s.q, R * 2 * H * s.D),
      gaussian(rng, 'f32', count * s.page * 2 * H * s.D),
      rng.chance(0.8) ? input('f32', count * H * rounds * s.page, () => rng.int(0, kinds - 1)) : null,
      table,
      ...index(s),
    ],
    i: [
      ...[R, H, s.D, s.page, maxPages, rounds, rng.pick([1, 7, rounds * chunk * (1 + back), 10000])],
      ...[chunk, back, +rng.chance(0.6), +rng.chance(0.6)],
    ],
    f: [1 / Math.sqrt(s.D)],
    tolerance: tolerance(2e-4, 2e-5, 1e-5),
  });
}

export const pagedLshCases: Record<string, CaseGenerator> = {
  paged_lsh_write: (_, rng) => problems(rng).map((s) => write(rng, s)),
  paged_lsh_attention: (_, rng) => problems(rng).map((s) => attend(rng, s)),
};
