// Cases of tokens drawn from rows of logits. Weights are small whole numbers and the numbers fall in the middle of a token's
// share, so that no rounding decides.
import { input, makeCase, output, type Rng } from './build.ts';
import type { CaseGenerator, KernelCase } from './types.ts';

function drawCase(rng: Rng, R: number, V: number, N: number): KernelCase {
  const temperature = Array.from({ length: R }, () => rng.pick([0, 1, 0.5, 2]));
  const never = Array.from({ length: R * 2 * N }, () => 0);
  const weight = Array.from({ length: R * V }, () => (rng.chance(0.2) ? 0 : rng.int(1, 9)));
  const number = Array.from({ length: R }, (_, r) => {
    const ranges = rng.int(0, N);
    for (let j = 0; j < ranges; j++) {
      const from = rng.int(0, V - 1);
      never[2 * (N * r + j)] = from;
      never[2 * (N * r + j) + 1] = Math.min(V, from + 1 + rng.int(0, 20));
    }
    const out = (k: number) =>
      Array.from({ length: N }, (_, j) => 2 * (N * r + j)).some((at) => k >= never[at] && k < never[at + 1]);
    const w = Array.from({ length: V }, (_, k) => (out(k) ? 0 : weight[r * V + k]));
    const total = w.reduce((a, b) => a + b, 0);
    const token = rng.int(0, V - 1);
    const before = w.slice(0, token).reduce((a, b) => a + b, 0);
    // A token of weight 0 has no middle: half a unit into the next one then.
    return total === 0 ? 0 : Math.min(Math.floor(((before + (w[token] || 1) / 2) / total) * 2 ** 32), 2 ** 32 - 1) | 0;
  });
  return makeCase('draw_rows', {
    p: [
      output('i32', R),
      input('f32', R * V, (k) => Math.log(weight[k]) * (temperature[Math.floor(k / V)] || 1)),
      input('f32', R, (k) => temperature[k]),
      input('i32', R, (k) => number[k]),
      input('i32', never.length, (k) => never[k]),
    ],
    i: [R, V, N],
  });
}

const drawRows: CaseGenerator = (_, rng) => {
  const odd = drawCase(rng, 4, 40, 1);
  const x = Array.from({ length: 160 }, (_, k) =>
    k % 40 === 7 ? Number.NaN : k < 40 ? Number.NEGATIVE_INFINITY : k % 3,
  );
  x[95] = Number.POSITIVE_INFINITY;
  return [
    ...[1, 3, 15, 16, 17, 100, 511, 512, 513, 1100, 5000].flatMap((V) => [
      drawCase(rng, 1, V, 2),
      drawCase(rng, 9, V, rng.int(1, 4)),
    ]),
    drawCase(rng, 0, 10, 1),
    // Nothing is possible in the first row; NaN is not drawn; infinity is the likeliest.
    { ...odd, p: odd.p.map((spec, k) => (k === 1 ? input('f32', 160, (j) => x[j]) : spec)) },
  ];
};

export const drawCases: Record<string, CaseGenerator> = { draw_rows: drawRows };
