// Cases of rotary embedding.
import {
  floatDtype,
  gapped,
  gaussian,
  input,
  makeCase,
  output,
  outputIn,
  type Rng,
  tolerance,
  updated,
} from './build.ts';
import type { CaseGenerator, KernelCase } from './types.ts';

function rotation(rng: Rng, dims: { B: number; T: number; heads: number; D: number }): KernelCase {
  const { B, T, heads, D } = dims;
  const R = 2 * rng.int(1, Math.floor(D / 2));
  const maxT = T + rng.int(0, 5);
  const rotated = rng.chance(0.5) ? heads : rng.int(0, heads);
  const inPlace = rng.chance(0.3);
  const tokX = heads * D + rng.pick([0, 0, 5]);
  const tokOut = inPlace ? tokX : heads * D + rng.pick([0, 0, 3]);
  const span = (tok: number) => (B * T === 0 ? 0 : (B * T - 1) * tok + heads * D);
  const x = gapped(rng, floatDtype(rng), span(tokX), tokX, heads * D);
  const outDtype = inPlace ? x.dtype : floatDtype(rng);
  let out = output(outDtype, span(tokOut));
  if (inPlace) out = outputIn(1, x.dtype, span(tokX));
  else if (tokOut > heads * D) out = updated(gaussian(rng, outDtype, span(tokOut)));
  const pos = rng.chance(0.4) ? input('i32', B * T, () => rng.int(0, maxT - 1)) : null;
  const table = () => input('f32', maxT * (R / 2), () => rng.uniform(-1, 1));
  return makeCase('rope', {
    p: [out, inPlace ? updated(x) : x, table(), table(), pos],
    i: [B, T, heads, rotated, D, R, maxT, rng.int(0, 1), rng.int(0, 1), tokX, tokOut],
    tolerance: tolerance(1e-6, 1e-6),
  });
}

const rope: CaseGenerator = (kernel, rng) => {
  const random = Array.from({ length: 100 }, () =>
    rotation(rng, {
      B: rng.int(1, 3),
      T: rng.int(1, 20),
      heads: rng.int(1, 6),
      D: rng.pick([2, 3, 4, 7, 8, 16, 24, 32, 33, 64, 66, 80]),
    }),
  );
  const chosen = [
    { B: 2, T: 300, heads: 6, D: 64 },
    { B: 1, T: 1000, heads: 3, D: 40 },
    { B: 0, T: 3, heads: 2, D: 8 },
  ];
  const bad = [
    [0, 1, 7],
    [0, -1, 2],
  ].map((positions) =>
    makeCase(kernel, {
      p: [
        output('f32', 3 * 8),
        gaussian(rng, 'f32', 3 * 8),
        gaussian(rng, 'f32', 5 * 4),
        gaussian(rng, 'f32', 5 * 4),
        input('i32', 3, (k) => positions[k]),
      ],
      i: [1, 3, 1, 1, 8, 8, 5, 0, 0, 8, 8],
      error: `index ${positions.find((at) => at < 0 || at >= 5)} out of range: limit 5`,
    }),
  );
  return [...random, ...chosen.map((dims) => rotation(rng, dims)), ...bad];
};

export const ropeCases: Record<string, CaseGenerator> = { rope };
