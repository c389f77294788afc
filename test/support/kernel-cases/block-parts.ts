// Cases of overlapping blocks laid out as rows and summed back, of their masks, and of the gated sum.
import { EXACT, FLOATS, gaussian, input, makeCase, output, type Rng, tolerance } from './build.ts';
import type { CaseGenerator, KernelCase } from './types.ts';

interface Blocks {
  readonly B: number;
  readonly T: number;
  readonly H: number;
  readonly D: number;
  readonly length: number;
  readonly stride: number;
}

const shapes = (rng: Rng): Blocks[] => [
  ...Array.from({ length: 24 }, () => ({
    ...{ B: rng.int(1, 3), T: rng.int(1, 60), H: rng.int(1, 3), D: rng.pick([1, 4, 5, 16, 20, 33]) },
    ...{ length: rng.int(1, 9), stride: rng.int(1, 5) },
  })),
  { B: 2, T: 3, H: 2, D: 4, length: 4, stride: 2 }, // no block at all
  { B: 1, T: 500, H: 2, D: 64, length: 32, stride: 16 },
];

const countOf = (s: Blocks): number => (s.T < s.length ? 0 : Math.floor((s.T - s.length) / s.stride) + 1);

function blocks(rng: Rng, kernel: 'unfold_blocks' | 'fold_blocks'): KernelCase[] {
  return shapes(rng).map((s) => {
    const dtype = rng.pick(FLOATS);
    const [wide, tokens] = [s.B * countOf(s) * s.H * s.length * s.D, s.B * s.T * s.H * s.D];
    const i = [s.B, s.T, countOf(s), s.H, s.D, s.length, s.stride];
    return kernel === 'unfold_blocks'
      ? makeCase(kernel, { p: [output(dtype, wide), gaussian(rng, dtype, tokens)], i, tolerance: EXACT })
      : makeCase(kernel, {
          p: [output(dtype, tokens), gaussian(rng, dtype, wide)],
          i,
          tolerance: tolerance(1e-6, 1e-6),
        });
  });
}

function masks(rng: Rng): KernelCase[] {
  return shapes(rng).map((s, k) => {
    let current = 0;
    const seg = k % 2 ? null : input('i32', s.B * s.T, () => (rng.chance(0.1) ? ++current : current));
    const segments = seg && output('i32', s.B * countOf(s));
    const p = [output('i32', s.B * s.T), segments, seg];
    return makeCase('block_masks', { p, i: [s.B, s.T, countOf(s), s.length, s.stride], tolerance: EXACT });
  });
}

function gates(rng: Rng, backward: boolean): KernelCase[] {
  return Array.from({ length: 24 }, () => {
    const [tokens, H, D] = [rng.pick([0, 1, 3, 50]), rng.int(1, 5), rng.pick([1, 4, 16, 20, 33, 64])];
    const [dtype, of] = [rng.pick(FLOATS), rng.pick(FLOATS)];
    const branches = [1, 2, 3].map(() => gaussian(rng, dtype, tokens * H * D));
    const gate = gaussian(rng, of, tokens * 3 * H);
    const i = [tokens, H, D];
    return backward
      ? makeCase('gate_branches_bwd', {
          p: [
            ...branches.map((x) => output(dtype, x.length)),
            ...[output(of, gate.length), gaussian(rng, dtype, tokens * H * D), ...branches, gate],
          ],
          ...{ i, tolerance: tolerance(1e-5, 1e-5) },
        })
      : makeCase('gate_branches', {
          ...{ p: [output(dtype, tokens * H * D), ...branches, gate], i, tolerance: tolerance(1e-6, 1e-6) },
        });
  });
}

export const blockPartsCases: Record<string, CaseGenerator> = {
  unfold_blocks: (_, rng) => blocks(rng, 'unfold_blocks'),
  fold_blocks: (_, rng) => blocks(rng, 'fold_blocks'),
  block_masks: (_, rng) => masks(rng),
  gate_branches: (_, rng) => gates(rng, false),
  gate_branches_bwd: (_, rng) => gates(rng, true),
};
