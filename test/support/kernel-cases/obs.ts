// Cases of one-shot rounding and removal: correlated inputs, columns that never were active, groups in another order.
import { obs } from '../../../src/backend/ref/obs.ts';
import { gaussian, input, makeCase, output, type Rng, tolerance } from './build.ts';
import type { CaseGenerator, KernelCase, TensorSpec } from './types.ts';

/** X^T X of correlated inputs; columns in `dead` are 0. */
function gram(rng: Rng, K: number, dead: readonly number[] = []): TensorSpec {
  const rows = 2 * K + 3;
  const x = Array.from({ length: rows }, () => {
    const common = rng.normal();
    return Array.from({ length: K }, (_, k) => (dead.includes(k) ? 0 : common + (1 + (k % 3)) * rng.normal()));
  });
  return input('f32', K * K, (at) => x.reduce((s, row) => s + row[Math.floor(at / K)] * row[at % K], 0));
}

const groups = (K: number): number[][] =>
  Array.from({ length: Math.ceil(K / 32) }, (_, g) =>
    Array.from({ length: Math.min(32, K - 32 * g) }, (_, k) => 32 * g + k),
  );

/** Groups in another order, and the columns within each. */
const orderOf = (rng: Rng, K: number): TensorSpec => {
  const order = rng.shuffled(groups(K).map((g) => rng.shuffled(g))).flat();
  return input('i32', K, (k) => order[k]);
};

const inverseFactor: CaseGenerator = (_, rng) => {
  const one = (K: number, dead: number[], ordered: boolean, h = gram(rng, K, dead)): KernelCase => {
    return makeCase('inverse_factor', {
      p: [output('f32', K * K), null, h, ordered ? orderOf(rng, K) : null],
      i: [K],
      f: [0.01],
      tolerance: tolerance(1e-4, 1e-5, 1e-5),
    });
  };
  return [
    ...[1, 2, 7, 31, 63, 64, 65, 100, 130].flatMap((K) => [one(K, [], false), one(K, K > 6 ? [3] : [], true)]),
    one(5, [0, 1, 2, 3, 4], false),
    // Not positive definite, whatever is added: all NaN.
    one(
      66,
      [],
      false,
      input('f32', 66 * 66, (k) => (k % 67 === 0 ? 1 : 3)),
    ),
  ];
};

interface Options {
  readonly format: number;
  readonly least?: number;
  readonly among?: number;
  readonly zeros?: boolean;
  readonly sparsity?: number;
  readonly ordered?: boolean;
}

const obsRound: CaseGenerator = (_, rng) => {
  const one = (N: number, K: number, o: Options): KernelCase => {
    const { format, least = 0, among = 0, zeros = false, sparsity = 0, ordered = false } = o;
    const u = new Float64Array(K * K);
    const h = gram(rng, K).data!;
    obs.inverse_factor({ p: [u, null, h, null], m: [], o: [], t: [], i: [K], f: [0.01] });
    const w = zeros
      ? input('f32', N * K, () => (rng.chance(0.4) ? 0 : rng.normal()))
      : gaussian(rng, 'f32', N * K, 0.1);
    const scales = format === 2 ? null : output('f32', N * Math.ceil(K / 32));
    return makeCase('obs_round', {
      p: [output('f32', N * K), scales, w, input('f32', K * K, (k) => u[k]), ordered ? orderOf(rng, K) : null],
      i: [N, K, format, least, among, +zeros],
      f: [sparsity],
      tolerance: tolerance(1e-4, 1e-5, 1e-4),
    });
  };
  const cases: KernelCase[] = [];
  // No groups of one or two columns: several scales fit those equally well.
  for (const [N, K] of [
    [1, 8],
    [17, 32],
    [33, 40],
    [2, 64],
    [70, 45],
    [5, 150],
    [3, 270],
  ]) {
    // Over many columns one choice of a q4 scale is sure to be a near-tie.
    for (const format of K > 200 ? [0, 2] : [0, 1, 2]) {
      cases.push(one(N, K, { format }), one(N, K, { format, ordered: true }));
      cases.push(one(N, K, { format, zeros: true }));
    }
    cases.push(one(N, K, { format: 2, sparsity: 0.5 }), one(N, K, { format: 2, sparsity: 0.3, ordered: true }));
    cases.push(one(N, K, { format: 2, least: 2, among: 4 }), one(N, K, { format: 1, least: 4, among: 8 }));
  }
  cases.push(one(0, 8, { format: 0 }));
  const bad = one(2, 4, { format: 0, ordered: true });
  const error = 'index 4 out of range: limit 4';
  cases.push({ ...bad, p: [...bad.p.slice(0, 4), input('i32', 4, (k) => k + 1)], error });
  return cases;
};

export const obsCases: Record<string, CaseGenerator> = { inverse_factor: inverseFactor, obs_round: obsRound };
