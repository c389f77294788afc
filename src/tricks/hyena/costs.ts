/** What the operator costs, in closed form. */
import { longConvFlops } from '../../tensor/index.ts';

export interface HyenaSizes {
  readonly width: number;
  readonly order: number;
  readonly shortKernel: number;
  readonly filterWidth: number;
  readonly bands: number;
  readonly bias: boolean;
}

export interface HyenaCosts {
  /** Matrices in and out; everything of the filters; taps, skips and biases. */
  readonly projections: number;
  readonly filters: number;
  readonly channels: number;
  readonly parameters: number;
  /** Products of a token: projections, short and long convolutions, and its share of the filters. */
  readonly flops: number;
}

/** For `sequences` rows of `time` tokens, each one segment. */
export function hyenaCosts(o: HyenaSizes, time: number, sequences: number): HyenaCosts {
  const { width: d, order: N, filterWidth: F } = o;
  const features = 2 * o.bands + 1;
  const matrices = features * F + 2 * F * F + (N - 1) * d * F;
  const projections = (N + 2) * d * d;
  const filters = matrices + 4 * F;
  const taps = (N + 1) * d * o.shortKernel;
  const channels = taps + (N - 1) * d + (o.bias ? (2 * N + 3) * d : 0);
  const long = (N - 1) * d * longConvFlops(time, time, sequences, false, true);
  return {
    ...{ projections, filters, channels },
    parameters: projections + filters + channels,
    flops: 2 * projections + 2 * taps + d + long / time + (2 * matrices) / sequences,
  };
}
