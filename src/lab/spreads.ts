/**
 * How much single runs of many arms vary, when each arm has only two or three of them. Judged by its own few runs, an arm
 * that happened to give close values would look certain; judged by one spread for all, an arm that is wilder than the
 * others would. So the true variances are taken as draws from a distribution that is learned from all arms (Smyth 2004,
 * "Linear models and empirical Bayes methods", section 4): sigma_k^2 = prior.variance * prior.df / chi2(prior.df), under
 * which an arm's own s_k^2 and the prior combine by degrees of freedom, and Student's t holds with the sum of both.
 */
import { logGamma, type Sample } from './statistics.ts';

export interface Spread {
  /** Variance of one run. */
  readonly variance: number;
  /** Degrees of freedom that it is known with; 0 when nothing is known. */
  readonly df: number;
}

/**
 * Degrees of freedom that a prior may have; the last stands for equal variances of all arms. The likelihood is flat
 * between neighbours.
 */
const GRID = [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 60, 100, 200, 1000];

/**
 * Of all degrees of freedom whose likelihood is not less than the best one's by this much (natural logarithm; the 95%
 * interval of a profile likelihood), the fewest are taken: the prior is not trusted further than the arms have shown that
 * they are alike.
 */
const DOUBT = 1.92;

/**
 * Log-likelihood of an observed variance: s^2 / variance has the F distribution with (df, prior.df). Its two
 * parts: what depends on the prior's variance, and what does not.
 */
function logScale(own: Spread, prior: Spread): number {
  const f = (own.df * own.variance) / (prior.df * prior.variance);
  return (-own.df / 2) * Math.log(prior.variance) - ((own.df + prior.df) / 2) * Math.log1p(f);
}
function logShape(own: Spread, df: number): number {
  const [a, b] = [own.df / 2, df / 2];
  return logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(own.df / df) + (a - 1) * Math.log(own.variance);
}

/** The likeliest variance for given degrees of freedom; the likelihood is concave in its logarithm. */
function fit(spreads: readonly Spread[], df: number): { prior: Spread; likelihood: number } {
  const scale = (log: number): number => spreads.reduce((n, s) => n + logScale(s, { variance: Math.exp(log), df }), 0);
  const logs = spreads.map((s) => Math.log(s.variance));
  let [low, high] = [Math.min(...logs) - 3, Math.max(...logs) + 3];
  while (high - low > 1e-3) {
    const third = (high - low) / 3;
    if (scale(low + third) < scale(high - third)) low += third;
    else high -= third;
  }
  const log = (low + high) / 2;
  const shape = spreads.reduce((n, s) => n + logShape(s, df), 0);
  return { prior: { variance: Math.exp(log), df }, likelihood: shape + scale(log) };
}

/** What the arms have in common. */
export function priorOf(spreads: readonly Spread[]): Spread {
  const known = spreads.filter((s) => s.df > 0);
  const usual = known.map((s) => s.variance).sort((a, b) => a - b)[Math.floor(known.length / 2)];
  if (known.length < 2 || !(usual > 0)) return { variance: Number.NaN, df: 0 };
  // Runs that gave exactly the same number twice are taken as close, not as certain.
  const positive = known.map(({ variance, df }) => ({ variance: Math.max(variance, 1e-4 * usual), df }));
  const fits = GRID.map((df) => fit(positive, df));
  const best = Math.max(...fits.map((f) => f.likelihood));
  return fits.find((f) => f.likelihood >= best - DOUBT)!.prior;
}

/** An arm's own spread and the prior, by their degrees of freedom. */
export function combine(own: Spread, prior: Spread): Spread {
  const df = own.df + prior.df;
  if (prior.df === 0) return own;
  if (own.df === 0) return prior;
  return { variance: (own.df * own.variance + prior.df * prior.variance) / df, df };
}

/** Within groups that share one variance but not one mean. */
export function spreadWithin(groups: readonly Sample[]): Spread {
  let [squares, df] = [0, 0];
  for (const values of groups) {
    const centre = values.reduce((a, b) => a + b, 0) / values.length;
    squares += values.reduce((n, v) => n + (v - centre) ** 2, 0);
    df += Math.max(0, values.length - 1);
  }
  return { variance: df > 0 ? squares / df : Number.NaN, df };
}

/** Of a difference of two means of `a.runs` and `b.runs` runs: its variance, and Satterthwaite's degrees of freedom. */
export function ofDifference(a: Spread & { runs: number }, b: Spread & { runs: number }): Spread {
  const [x, y] = [a.variance / a.runs, b.variance / b.runs];
  if (a.df === 0 || b.df === 0) return { variance: Number.NaN, df: 0 };
  return { variance: x + y, df: (x + y) ** 2 / (x ** 2 / a.df + y ** 2 / b.df) };
}
