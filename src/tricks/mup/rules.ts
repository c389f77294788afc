/**
 * The table of muP ("table 8" form: multipliers in the graph, plain rates), with m = width / baseWidth and
 * mL = depth / baseDepth. Rates are those of optimisers whose steps do not depend on the size of the gradient.
 *
 * | role                         | init std    | forward      | rate           | epsilon          | decay |
 * |------------------------------|-------------|--------------|----------------|------------------|-------|
 * | embedding, vector, constant  | as declared | embedding: a | 1              | 1                | 1     |
 * | hidden                       | ~ 1/sqrt(m) | 1            | 1/m            | 1/m              | m     |
 * | output of a head             | constant    | a/m          | 1              | 1                | 1     |
 * | output (router, controller)  | ~ 1/m       | 1            | 1/m            | 1/m              | m     |
 * | in a residual block, besides |             | mL^-alpha    | mL^(alpha - 1) | mL^-alpha        |       |
 *
 * Decay is multiplied by the rate in every optimiser here: with these factors a step shrinks any tensor by the same share
 * at any width. Attention scores are multiplied by a sqrt(base head width) / head width.
 */
import type { NamedParam, Parametrisation, ParamSpec, ScaledSizes } from '../../nn/index.ts';

export interface MupOptions {
  readonly baseWidth: number;
  readonly baseDepth?: number;
  readonly alpha: number;
  readonly baseHeadWidth?: number;
  readonly embedding: number;
  readonly output: number;
  readonly attention: number;
  readonly zeroOutput: boolean;
}

/** Init of a spec with its standard deviation multiplied. Constants stay. */
const scaled = (spec: ParamSpec, factor: number): ParamSpec =>
  factor === 1 || spec.init.kind !== 'normal'
    ? spec
    : { ...spec, init: { kind: 'normal', std: spec.init.std * factor } };

const times = (spec: ParamSpec, lr: number, decay: number, eps: number): ParamSpec => ({
  ...spec,
  lrMult: (spec.lrMult ?? 1) * lr,
  decayMult: (spec.decayMult ?? 1) * decay,
  epsMult: (spec.epsMult ?? 1) * eps,
});

/** The initial standard deviation at the base width, over the declared one, which falls with the root of `grows`. */
const atBase = ({ fans }: ParamSpec, m: number): number =>
  fans ? Math.sqrt((fans.grows + fans.fixed) / (fans.grows / m + fans.fixed)) : Math.sqrt(m);

/** Width rules. Layers declare std ~ 1/sqrt(fan-in) for hidden and output tensors, and constants for the rest. */
function byWidth(spec: ParamSpec, m: number, zero: boolean): ParamSpec {
  switch (spec.role) {
    case 'hidden':
      return { ...times(spec, 1 / m, m, 1 / m), widthMult: m };
    case 'output': {
      const fromZero = zero && (spec.logits || spec.mayStartAtZero);
      const base: ParamSpec = fromZero
        ? { ...spec, init: { kind: 'constant', value: 0 } }
        : scaled(spec, atBase(spec, m) / (spec.logits ? 1 : m));
      return spec.logits ? base : { ...times(base, 1 / m, m, 1 / m), widthMult: m };
    }
    default:
      return spec.fans ? scaled(spec, atBase(spec, m)) : spec;
  }
}

/** Whether a parameter belongs to a block of the residual stream. */
const inBlock = (path: string): boolean => /(^|\.)blocks\.\d+\./.test(path);

/** Rates of tensors whose updates add up over the blocks; the initial values no longer make up for depth. */
function byDepth(spec: ParamSpec, mL: number, alpha: number): ParamSpec {
  const start = spec.depthGain ? scaled(spec, 1 / spec.depthGain) : spec;
  return times(start, mL ** (alpha - 1), 1, mL ** -alpha);
}

export function mup(o: MupOptions, { width, depth, headWidth }: ScaledSizes): Parametrisation {
  const m = width / o.baseWidth;
  const mL = o.baseDepth === undefined ? 1 : depth / o.baseDepth;
  const baseHead = o.baseHeadWidth ?? headWidth;
  return {
    scales: {
      embedding: o.embedding,
      logits: o.output / m,
      branch: mL ** -o.alpha,
      attention: (d) => (o.attention * Math.sqrt(baseHead / d)) / Math.sqrt(d),
    },
    param: ({ path, spec }: NamedParam): ParamSpec => {
      const wide = byWidth(spec, m, o.zeroOutput);
      return o.baseDepth !== undefined && inBlock(path) ? byDepth(wide, mL, o.alpha) : wide;
    },
  };
}
