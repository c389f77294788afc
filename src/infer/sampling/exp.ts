/** exp of what is not positive, several times as fast as Math.exp: a distribution over a vocabulary takes one for each token. */

/** 2^-k. */
const powers = Float64Array.from({ length: 1075 }, (_, k) => 2 ** -k);
const LOG2E = 1 / Math.LN2;
/** ln 2 in two parts, the first one with few enough bits that its multiples up to 1074 are exact. */
const LN2_HIGH = 0.6931471803691238;
const LN2_LOW = 1.9082149292705877e-10;

/**
 * exp(x) for x <= 0, within 4e-15 of it (relative): x = r - k ln 2 with |r| <= ln 2 / 2, and exp(r) as its Taylor polynomial of
 * degree 12, whose first missing term is below 2e-16. 0 below the range of doubles; NaN stays NaN.
 */
export function expNegative(x: number): number {
  const k = Math.floor(0.5 - x * LOG2E);
  if (!(k < 1075)) return Number.isNaN(k) ? x : 0;
  const r = x + k * LN2_HIGH + k * LN2_LOW;
  const p = r * (1 / 479001600) + 1 / 39916800;
  const q = ((p * r + 1 / 3628800) * r + 1 / 362880) * r + 1 / 40320;
  const s = (((q * r + 1 / 5040) * r + 1 / 720) * r + 1 / 120) * r + 1 / 24;
  return ((((s * r + 1 / 6) * r + 0.5) * r + 1) * r + 1) * powers[k];
}
