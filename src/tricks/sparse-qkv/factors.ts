/** Parameters of a factored dense layer y[s M + m] = sum_i x[i] D[s,i] E[m,i]. */
import type { ParamSpec } from '../../nn/index.ts';

/**
 * D [S, d] ~ N(0, 1/4) and E [M, d] with Glorot's variance, as published. D multiplies inputs one by one, so that to
 * parametrisations it is a vector for each module; E carries the width.
 */
export function factors(modules: number, moduleWidth: number, fanIn: number): { D: ParamSpec; E: ParamSpec } {
  return {
    D: {
      shape: [modules, fanIn],
      init: { kind: 'normal', std: 0.5 },
      ...{ role: 'vector', fanIn: 1, fanOut: modules * fanIn, decay: true },
    },
    E: {
      shape: [moduleWidth, fanIn],
      init: { kind: 'normal', std: Math.sqrt(2 / (fanIn + moduleWidth)) },
      ...{ role: 'hidden', fanIn, fanOut: moduleWidth, decay: true },
    },
  };
}

/** Weights of the two factors; a dense layer has S times as many, roughly. */
export const factoredWeights = (modules: number, moduleWidth: number, fanIn: number): number =>
  fanIn * (modules + moduleWidth);
