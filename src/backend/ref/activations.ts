// Scalar functions and their derivatives: the definitions behind the elementwise and gated kernels.

const SQRT_2_OVER_PI = Math.sqrt(2 / Math.PI);

/**
 * Complementary error function in float64. Below 2: 1 - erf, from the all-positive series
 * erf(x) = 2/sqrt(pi) exp(-x^2) sum_n 2^n x^(2n+1) / (2n+1)!! (Abramowitz and Stegun 7.1.6). From 2 on: the continued
 * fraction exp(-x^2)/sqrt(pi) * 1/(x + (1/2)/(x + 1/(x + (3/2)/(x + ...)))) (7.1.14), which keeps the tail accurate.
 */
export function erfc(x: number): number {
  if (Number.isNaN(x)) return x;
  if (x < 0) return 2 - erfc(-x);
  if (x < 2) {
    let term = x;
    let sum = x;
    for (let n = 1; term > sum * 1e-17; n++) sum += term *= (2 * x * x) / (2 * n + 1);
    return 1 - (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
  }
  let tail = x;
  for (let n = 120; n > 0; n--) tail = x + n / 2 / tail;
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / tail;
}

const normalCdf = (x: number) => 0.5 * erfc(-x / Math.SQRT2);
const normalPdf = (x: number) => Math.exp(-0.5 * x * x) / Math.sqrt(2 * Math.PI);
export const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));

const geluTanh = (x: number) => Math.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x ** 3));
const gelu = (x: number) => 0.5 * x * (1 + geluTanh(x));
function geluSlope(x: number): number {
  const t = geluTanh(x);
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * SQRT_2_OVER_PI * (1 + 3 * 0.044715 * x * x);
}

export const unary: Record<string, (x: number) => number> = {
  neg: (x) => -x,
  abs: Math.abs,
  sign: Math.sign,
  square: (x) => x * x,
  sqrt: Math.sqrt,
  rsqrt: (x) => 1 / Math.sqrt(x),
  recip: (x) => 1 / x,
  exp: Math.exp,
  log: Math.log,
  sin: Math.sin,
  cos: Math.cos,
  tanh: Math.tanh,
  sigmoid,
  relu: (x) => Math.max(x, 0),
  gelu,
  gelu_erf: (x) => x * normalCdf(x),
  silu: (x) => x * sigmoid(x),
  softplus: (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))),
  relu2: (x) => Math.max(x, 0) ** 2,
  step: (x) => (x > 0 ? 1 : 0),
};

/** f'(x) of the activations that have a backward kernel of their own. */
export const slope: Record<string, (x: number) => number> = {
  gelu: geluSlope,
  gelu_erf: (x) => normalCdf(x) + x * normalPdf(x),
  silu: (x) => sigmoid(x) * (1 + x * (1 - sigmoid(x))),
  relu: (x) => (x > 0 ? 1 : 0),
  relu2: (x) => 2 * Math.max(x, 0),
  softplus: sigmoid,
};

/** Activations of the gated kernels, by their number in docs/kernels.md: value and slope. */
export const gateActivations: readonly { value: (x: number) => number; slope: (x: number) => number }[] = [
  { value: unary.silu, slope: slope.silu },
  { value: unary.gelu, slope: slope.gelu },
  { value: unary.relu, slope: slope.relu },
  { value: sigmoid, slope: (x) => sigmoid(x) * (1 - sigmoid(x)) },
  { value: (x) => x, slope: () => 1 },
  { value: unary.gelu_erf, slope: slope.gelu_erf },
];
