/** Mixtures of denoisers: what each hides, its mode token, and its share of the examples. */
import { z } from 'zod';
import { AnsatzError } from '../../backend/errors.ts';

export const MODES = ['R', 'S', 'X'] as const;

const common = {
  /** Mode token: R regular, S sequential, X extreme. */
  mode: z.enum(MODES),
  /** Examples of this kind for each example of a kind with share 1; shares need not sum to 1. */
  share: z.number().positive(),
};

export const denoiserSchema = z.discriminatedUnion('kind', [
  /** Spans of mean length `mean` over a share `density` of the text. */
  z.strictObject({ kind: z.literal('spans'), ...common, mean: z.number().min(1), density: z.number().gt(0).lt(1) }),
  /** The end of the text from its beginning; `suffix` is the share to predict, absent: a split drawn uniformly. */
  z.strictObject({ kind: z.literal('prefix'), ...common, suffix: z.number().gt(0).lt(1).optional() }),
  /** All of the text, from nothing. */
  z.strictObject({ kind: z.literal('causal'), ...common }),
]);

export type Denoiser = z.output<typeof denoiserSchema>;

const spans = (mode: (typeof MODES)[number], mean: number, density: number, share: number): Denoiser => ({
  kind: 'spans',
  mode,
  mean,
  density,
  share,
});

export const mixtures = {
  /** UL2's seven, R 40 %, S 20 %, X 40 % (Tay et al. 2022). */
  ul2: [
    spans('R', 3, 0.15, 0.2),
    spans('R', 8, 0.15, 0.2),
    { kind: 'prefix', mode: 'S', share: 0.2 },
    spans('X', 3, 0.5, 0.1),
    spans('X', 8, 0.5, 0.1),
    spans('X', 64, 0.15, 0.1),
    spans('X', 64, 0.5, 0.1),
  ],
  /** Half of it continuation: for chat (T5Gemma 2). */
  t5gemma2: [
    spans('R', 3, 0.15, 0.125),
    spans('X', 12, 0.5, 0.125),
    spans('X', 32, 0.15, 0.125),
    spans('X', 32, 0.5, 0.125),
    { kind: 'prefix', mode: 'S', suffix: 0.75, share: 0.5 },
  ],
  /** UL2R: going on from a causal checkpoint (Tay et al. 2022, "Transcending scaling laws with 0.1% extra compute"). */
  ul2r: [
    { kind: 'prefix', mode: 'S', share: 0.5 },
    spans('X', 3, 0.5, 0.125),
    spans('X', 32, 0.15, 0.125),
    spans('R', 3, 0.15, 0.25),
  ],
  /** Mostly causal, for a decoder from scratch (Garcia et al. 2023). */
  clm: [
    { kind: 'causal', mode: 'S', share: 0.6 },
    { kind: 'prefix', mode: 'S', share: 0.2 },
    spans('R', 3, 0.15, 0.1),
    spans('X', 32, 0.5, 0.1),
  ],
} as const satisfies Record<string, readonly Denoiser[]>;

/** The same denoisers with `share` of all examples for those of mode S; the others keep their proportions. */
export function withSequentialShare(list: readonly Denoiser[], share: number): Denoiser[] {
  const sum = (of: (d: Denoiser) => boolean): number => list.reduce((n, d) => n + (of(d) ? d.share : 0), 0);
  const [s, rest] = [sum((d) => d.mode === 'S'), sum((d) => d.mode !== 'S')];
  if (s === 0 || rest === 0)
    throw new AnsatzError('ul2: sequentialShare needs denoisers of mode S and of other modes', {
      hint: 'give the shares in the mixture itself',
    });
  return list.map((d) => ({ ...d, share: d.mode === 'S' ? (d.share / s) * share : (d.share / rest) * (1 - share) }));
}

/**
 * How many of `total` examples each share gets: largest remainders, so that every row holds the same mixture and no
 * randomness is added by drawing tasks.
 */
export function quotas(shares: readonly number[], total: number): number[] {
  const sum = shares.reduce((a, b) => a + b, 0);
  const exact = shares.map((s) => (s / sum) * total);
  const out = exact.map((x) => Math.floor(x + 1e-9));
  const order = exact.map((x, k) => ({ k, rest: x - out[k] })).sort((a, b) => b.rest - a.rest || a.k - b.k);
  let left = total - out.reduce((a, b) => a + b, 0);
  for (const { k } of order) if (left-- > 0) out[k]++;
  return out;
}

/** The fewest examples that hold shares exactly, those with `paired` in even numbers; at most 64, else 20. */
export function smallestRow(shares: readonly number[], paired: readonly boolean[]): number {
  const sum = shares.reduce((a, b) => a + b, 0);
  for (let n = shares.length; n <= 64; n++) {
    const exact = shares.map((s) => (s / sum) * n);
    const whole = exact.every((x) => Math.abs(x - Math.round(x)) < 1e-6);
    if (whole && exact.every((x, k) => !paired[k] || Math.round(x) % 2 === 0)) return n;
  }
  return 20;
}
