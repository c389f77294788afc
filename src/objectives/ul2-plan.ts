/** The examples of a row of the mixture of denoisers, and the exact size of everything, before any text is seen. */
import { AnsatzError } from '../backend/errors.ts';
import type { VisiblePairs } from '../model/model.ts';
import { exampleLengths, rawForInputs, rawForStream } from '../tricks/ul2/lengths.ts';
import { type Denoiser, mixtures, quotas, smallestRow, withSequentialShare } from '../tricks/ul2/mixtures.ts';
import { counts, type Draw, openMask, rint32, t5Mask } from '../tricks/ul2/spans.ts';
import type { Sizes } from './objective.ts';
import type { Ul2Options } from './ul2.ts';

export interface Example {
  readonly denoiser: Denoiser;
  /** Tokens of text. */
  readonly raw: number;
  /** Tokens that are given; undefined: drawn, or what the mask leaves. */
  readonly given: number | undefined;
  /** In an encoder-decoder, two texts are cut at s and raw - s: apart their sizes are random, together they are not. */
  readonly paired: boolean;
}

export interface RowPlan {
  /** Examples in groups that keep their order. */
  readonly groups: readonly (readonly Example[])[];
  /** Tokens of text in a row. */
  readonly stored: number;
  readonly length: number;
  readonly encoder: number;
  readonly targets: number;
  readonly sentinels: number;
  readonly pairs: VisiblePairs;
}

export const maskOf = (e: Example, sampler: 'open' | 't5', draw: Draw): Uint8Array => {
  const { density, mean } = e.denoiser as Denoiser & { kind: 'spans' };
  return (sampler === 't5' ? t5Mask : openMask)(e.raw, density, mean, draw);
};

/** Text of an example, and how much of it is given. */
function exampleOf(denoiser: Denoiser, budget: number, mode: number, encoder: boolean): Example {
  const d = denoiser;
  if (d.kind === 'spans') {
    const raw = encoder
      ? rawForInputs(budget - mode, d.density, d.mean)
      : rawForStream(budget, d.density, d.mean, mode);
    return { denoiser, raw, given: undefined, paired: false };
  }
  // Encoder: mode, the given part, END. Stream: mode, all of it, START and END, less the shift by one.
  const raw = budget - 1 - mode;
  if (d.kind === 'causal') return { denoiser, raw, given: 0, paired: false };
  if (d.suffix === undefined) return { denoiser, raw, given: undefined, paired: encoder };
  const rest = Math.min(Math.max(rint32(Math.fround(raw) * Math.fround(d.suffix)), 1), raw - 1);
  return { denoiser, raw, given: raw - rest, paired: false };
}

/** Sizes of an example when `given` of its tokens are given (ignored for spans). */
function sizesOf(e: Example, given: number, mode: number): { inputs: number; targets: number } {
  if (e.denoiser.kind === 'spans') {
    const { inputs, targets } = exampleLengths(e.raw, e.denoiser.density, e.denoiser.mean);
    return { inputs: inputs + mode, targets };
  }
  return { inputs: mode + given + 1, targets: e.raw - given + 1 };
}

/** Means over the ways to cut an example. */
function meanOf(e: Example, mode: number, of: (inputs: number, targets: number) => number): number {
  const drawn = e.denoiser.kind === 'prefix' && e.given === undefined;
  const cuts = drawn ? Array.from({ length: e.raw - 1 }, (_, k) => k + 1) : [e.given ?? 0];
  return cuts.reduce((n, cut) => {
    const { inputs, targets } = sizesOf(e, cut, mode);
    return n + of(inputs, targets) / cuts.length;
  }, 0);
}

export function planRow(o: Ul2Options, sizes: Sizes): RowPlan {
  const named: readonly Denoiser[] = typeof o.mixture === 'string' ? mixtures[o.mixture] : o.mixture;
  const list = o.sequentialShare === undefined ? named : withSequentialShare(named, o.sequentialShare);
  const budget = o.budget ?? sizes.length;
  // Rows of examples are as long as their examples make them: only a model's positions limit those.
  const longest = sizes.longest ?? sizes.length;
  if (budget > longest)
    throw new AnsatzError(`objective ul2: examples of ${budget} tokens are longer than a row can be, ${longest}`, {
      hint: 'lower objective.budget, or raise model.context',
    });
  if (budget < 16) throw new AnsatzError(`objective ul2: examples of ${budget} tokens are too short: at least 16`);
  const mode = o.modes ? 1 : 0;
  const kinds = list.map((d) => exampleOf(d, budget, mode, sizes.encoder));
  // A dense denoiser has more targets than inputs, and the decoder must have positions for them.
  const most = kinds.map((e) => sizesOf(e, e.given ?? 1, mode).targets);
  const beyond = sizes.encoder ? most.findIndex((targets) => targets > longest) : -1;
  if (beyond >= 0)
    throw new AnsatzError(
      `objective ul2: denoiser ${beyond + 1} of the mixture has examples of ${most[beyond]} targets, longer than a row can be, ${longest}`,
      { hint: 'lower its density or objective.budget, or raise model.context' },
    );
  const shares = list.map((d) => d.share);
  const total =
    o.examples ??
    smallestRow(
      shares,
      kinds.map((e) => e.paired),
    );
  const counted = quotas(shares, total).map((n, k) => (kinds[k].paired ? 2 * Math.round(n / 2) : n));
  const none = counted.indexOf(0);
  if (none >= 0)
    throw new AnsatzError(
      `objective ul2: ${total} examples in a row leave none for denoiser ${none + 1} of the mixture`,
      {
        hint: `raise objective.examples, or leave it out: ${smallestRow(
          shares,
          kinds.map((e) => e.paired),
        )} fit the shares`,
      },
    );

  const groups = kinds.flatMap((e, k) => {
    const size = e.paired ? 2 : 1;
    return Array.from({ length: counted[k] / size }, () => Array.from({ length: size }, () => e));
  });
  const all = groups.flat();
  const sum = (of: (e: Example) => number): number => all.reduce((n, e) => n + of(e), 0);
  const mean = (of: (inputs: number, targets: number) => number): number => sum((e) => meanOf(e, mode, of));
  const spans = all.map((e) =>
    e.denoiser.kind === 'spans' ? counts(e.raw, e.denoiser.density, e.denoiser.mean).spans : 0,
  );
  const common = { groups, stored: sum((e) => e.raw), sentinels: Math.max(0, ...spans) + 1 };
  const whole = (x: number): number => Math.round(x);
  if (sizes.encoder) {
    // Of a pair each size is drawn, their sum is not: twice the mean is exact.
    const length = whole(mean((_, targets) => targets));
    return {
      ...common,
      length,
      encoder: whole(mean((inputs) => inputs)),
      targets: length,
      pairs: {
        encoder: mean((inputs) => inputs ** 2),
        cross: mean((inputs, targets) => inputs * targets),
        self: mean((_, targets) => (targets * (targets + 1)) / 2),
      },
    };
  }
  // A stream has one position fewer than tokens; the given part is mode, inputs and START, as long as mode, inputs, END.
  const positions = (inputs: number, targets: number): number => inputs + targets - 1;
  const ahead = (inputs: number): number => (o.bidirectional ? (inputs * (inputs - 1)) / 2 : 0);
  return {
    ...common,
    length: whole(mean(positions)),
    encoder: 0,
    targets: mean((_, targets) => targets),
    pairs: { self: mean((i, t) => (positions(i, t) * (positions(i, t) + 1)) / 2 + ahead(i)) },
  };
}
