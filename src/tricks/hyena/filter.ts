/**
 * The implicit filter of a Hyena operator: a small network of sines maps the position of a tap to its value in every
 * channel, under a window that decays exponentially at another rate in each channel.
 *
 * Shapes: L taps, n bands, F width of the network, D channels, R = order - 1 filters.
 */
import type { Device } from '../../backend/device.ts';
import { type ParamSpec, type ParamTree, tensorOf } from '../../nn/index.ts';
import {
  affine,
  concat,
  cos,
  decayWindow,
  iota,
  matmul,
  mul,
  neg,
  reshape,
  sin,
  slice,
  type Tensor,
} from '../../tensor/index.ts';

export interface FilterOptions {
  /** D and R. */
  readonly width: number;
  readonly filters: number;
  /** Positions are measured against this many tokens, and there are no more taps than that. */
  readonly reach: number;
  readonly filterWidth: number;
  readonly bands: number;
  /** omega of the sines at the start. */
  readonly frequency: number;
  /** The window falls to `target` after this share of the reach, in the slowest and in the fastest channel. */
  readonly slow: number;
  readonly fast: number;
  readonly target: number;
  readonly shift: number;
  /** Factor on the learning rate of the filter's parameters. */
  readonly rate: number;
}

/** Standard deviation of the network's matrices, which omega multiplies: that of all matrices of the published models. */
const START = 0.02;
/** Layers of sines. */
const LAYERS = 3;
/** Lowest frequency of the features, in periods per reach. */
const LOWEST = 1e-4;

/** Window rates of filter r per token, in its first and its last channel: channels and filters interleave. */
export function decayRates(o: FilterOptions, r: number): { first: number; last: number } {
  const scale = Math.max(1, o.reach - 1);
  const [slowest, fastest] = [o.slow, o.fast].map((share) => -Math.log(o.target) / share / scale);
  const all = o.width * o.filters;
  const at = (channel: number): number =>
    all > 1 ? slowest + ((fastest - slowest) * (channel * o.filters + r)) / (all - 1) : slowest;
  return { first: at(0), last: at(o.width - 1) };
}

export function filterParams(o: FilterOptions): Record<string, ParamSpec> {
  const { filterWidth: F, bands, rate } = o;
  // None of the network's inner axes grows with the model: to parametrisations these are constants. The last layer maps
  // a fixed width to the model's, as an embedding does.
  const inner = (shape: number[], fanIn: number): ParamSpec => ({
    shape,
    init: { kind: 'normal', std: START },
    ...{ role: 'constant', fanIn, fanOut: F, decay: false, lrMult: rate },
  });
  const sizes = [2 * bands + 1, ...Array.from({ length: LAYERS - 1 }, () => F)];
  return {
    ...Object.fromEntries(
      sizes.flatMap((n, k) => [
        [`filter${k}`, inner([F, n], n)],
        [`filterBias${k}`, { ...inner([F], n), init: { kind: 'constant', value: 0 } }],
      ]),
    ),
    frequency: { ...inner([F], 1), init: { kind: 'constant', value: o.frequency } },
    filterOut: { ...inner([o.filters * o.width, F], F), role: 'embedding', fanOut: o.filters * o.width },
  };
}

/** [L, 2n+1]: t, cos(2 pi f t'), -sin(2 pi f t'), with t from 0 to 1 over the reach and t' = token / reach. */
function features(device: Device, taps: number, o: FilterOptions): Tensor {
  const tau = reshape(iota(device, taps), [taps, 1]);
  const step = o.bands > 1 ? (o.bands - 1 - LOWEST) / (o.bands - 1) : 0;
  const turn = (2 * Math.PI) / o.reach;
  const angles = mul(tau, reshape(iota(device, o.bands, LOWEST * turn, step * turn), [1, o.bands]));
  return concat([affine(tau, 1 / Math.max(1, o.reach - 1), 0), cos(angles), neg(sin(angles))], 1);
}

/** The first `taps` taps of each filter, f32 [taps, D]. All of it in f32: the sines turn far. */
export function implicitFilters(p: ParamTree, device: Device, taps: number, o: FilterOptions): Tensor[] {
  let x = features(device, taps, o);
  const omega = reshape(tensorOf(p, 'frequency'), [1, o.filterWidth]);
  for (let k = 0; k < LAYERS; k++) {
    const bias = tensorOf(p, `filterBias${k}`);
    x = sin(mul(matmul(x, tensorOf(p, `filter${k}`), { transB: true, bias, compute: 'f32', out: 'f32' }), omega));
  }
  const out = tensorOf(p, 'filterOut');
  return Array.from({ length: o.filters }, (_, r) => {
    const w = o.filters === 1 ? out : slice(out, 0, r * o.width, (r + 1) * o.width);
    const { first, last } = decayRates(o, r);
    return decayWindow(matmul(x, w, { transB: true, compute: 'f32', out: 'f32' }), first, last, o.shift);
  });
}
