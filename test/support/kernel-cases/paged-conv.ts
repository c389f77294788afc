// Cases of long convolutions over pages.
import { gaussian, makeCase, output, type Rng, tolerance } from './build.ts';
import { ints, type Problem, pages, problems } from './paged.ts';
import type { CaseGenerator, KernelCase } from './types.ts';

function conv(rng: Rng, s: Problem): KernelCase {
  const { table, maxPages, count } = pages(rng, s);
  const R = s.rows.length;
  // Channels with a tail, and filters that end before a long text begins.
  const C = rng.pick([1, 7, 16, 33, 64, 130]);
  const taps = rng.pick([1, 20, 300, 1000]);
  return makeCase('paged_conv', {
    p: [
      output(s.out, R * C),
      gaussian(rng, 'f32', count * s.page * C),
      gaussian(rng, 'f32', taps * C, 1 / Math.sqrt(taps)),
      rng.chance(0.7) ? gaussian(rng, 'f32', C) : null,
      table,
      ints(s.rows.map(([q]) => q)),
      ints(s.rows.map(([, t]) => t)),
    ],
    i: [R, C, taps, s.page, maxPages],
    tolerance: tolerance(2e-5, 2e-5, 1e-5),
  });
}

export const pagedConvCases: Record<string, CaseGenerator> = {
  paged_conv: (_, rng) => problems(rng).map((s) => conv(rng, s)),
};
