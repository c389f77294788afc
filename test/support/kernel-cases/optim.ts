// Cases of gradient clipping and AdamW.
import { floatDtype, gaussian, input, LENGTHS, makeCase, output, tolerance, updated } from './build.ts';
import type { CaseGenerator } from './types.ts';

/** step_scalars at step t of AdamW with learning rate 1e-2. */
const scalars = (t: number, scale: number, finite: number) =>
  input('f32', 8, (k) => [1e-2, scale, 1 - 0.9 ** t, 1 - 0.95 ** t, finite, 3, 1, 0][k]);

const clipScale: CaseGenerator = (kernel, rng) => {
  const finite = [0, 1, 2, 7, 16, 33, 150].flatMap((n) =>
    [
      [0, 1],
      [1, 1],
      [0.01, 0.125],
      [1e6, 1],
    ].map(([maxnorm, extra]) => ({ values: () => rng.next() ** 2, n, maxnorm, extra })),
  );
  const rest = [Number.NaN, Number.POSITIVE_INFINITY].map((bad) => ({
    values: (k: number) => (k === 3 ? bad : 1),
    n: 9,
    maxnorm: 1,
    extra: 1,
  }));
  const zero = { values: () => 0, n: 5, maxnorm: 1, extra: 1 };
  return [...finite, ...rest, zero].map(({ values, n, maxnorm, extra }) =>
    makeCase(kernel, {
      // The gradient scale means nothing when the norm is not finite: the step is skipped.
      p: [
        { ...updated(scalars(1, 0.5, 1)), open: rest.some((c) => c.values === values) ? [1] : [] },
        input('f32', n, values),
      ],
      i: [n],
      f: [maxnorm, extra],
      tolerance: tolerance(1e-6, 0),
    }),
  );
};

const adamw: CaseGenerator = (kernel, rng) =>
  [...LENGTHS, 33, 1000].map((n, round) => {
    const finite = round % 7 === 3 ? 0 : 1;
    const g = finite
      ? gaussian(rng, floatDtype(rng), n)
      : input('f32', n, () => rng.pick([Number.NaN, Number.POSITIVE_INFINITY, 1]));
    const shadow = rng.chance(0.5) ? (finite ? output('bf16', n) : updated(gaussian(rng, 'bf16', n))) : null;
    return makeCase(kernel, {
      p: [
        ...[
          updated(gaussian(rng, 'f32', n)),
          updated(gaussian(rng, 'f32', n, 0.1)),
          updated(input('f32', n, () => rng.next())),
        ],
        ...[g, scalars(rng.int(1, 50), rng.pick([1, 0.3]), finite), shadow],
      ],
      i: [n],
      f: [rng.pick([1, 0.5]), 0.9, 0.95, 1e-8, rng.pick([0, 0.1])],
      tolerance: tolerance(3e-6, 1e-7, 3e-6),
    });
  });

export const optimCases: Record<string, CaseGenerator> = { clip_scale: clipScale, adamw };
