/** What mixtures cost, and how large experts may be for the cost of a dense layer. */
import { AnsatzError } from '../../backend/errors.ts';

export interface MoeSize {
  readonly width: number;
  readonly expert: 'glu' | 'mlp';
  /** Units of one expert. */
  readonly hidden: number;
  readonly experts: number;
  readonly active: number;
  readonly shared?: number;
}

export interface MoeCost {
  readonly parameters: number;
  /** Parameters that a token meets, the router's included. */
  readonly activeParameters: number;
  /** Forward, of matrix products; training costs three times that. */
  readonly flopsPerToken: number;
}

const matricesOf = (kind: 'glu' | 'mlp'): number => (kind === 'glu' ? 3 : 2);

/** Of a dropless layer, exactly. */
export function moeCost({ width: d, expert, hidden, experts, active, shared = 0 }: MoeSize): MoeCost {
  const one = matricesOf(expert) * d * hidden;
  const router = experts * d;
  const activeParameters = (active + shared) * one + router;
  return { parameters: (experts + shared) * one + router, activeParameters, flopsPerToken: 2 * activeParameters };
}

interface Target {
  readonly width: number;
  readonly expert: 'glu' | 'mlp';
  /** Units of the dense layer of the same kind. */
  readonly dense: number;
  readonly experts: number;
  readonly active: number;
  readonly shared?: number;
  /** The units of an expert are rounded down to a multiple of this. */
  readonly multiple?: number;
}

function units(of: number, multiple: number, what: string): number {
  const n = Math.floor(of / multiple) * multiple;
  if (n < 1)
    throw new AnsatzError(`moe sizing: no expert of ${multiple} units or more fits ${what}`, {
      hint: 'use fewer experts or a wider layer to compare with',
    });
  return n;
}

/** Units of an expert such that a token costs at most what it does in the dense layer, the router included. */
export function isoFlopHidden({ width, expert, dense, experts, active, shared = 0, multiple = 1 }: Target): number {
  const budget = matricesOf(expert) * width * dense - experts * width;
  return units(budget / (matricesOf(expert) * width * (active + shared)), multiple, "the dense layer's FLOPs");
}

/** Units of an expert such that the layer has at most the dense one's parameters, the router included. */
export function isoParameterHidden({ width, expert, dense, experts, shared = 0, multiple = 1 }: Target): number {
  const budget = matricesOf(expert) * width * dense - experts * width;
  return units(budget / (matricesOf(expert) * width * (experts + shared)), multiple, "the dense layer's parameters");
}

/**
 * Fine-grained experts (Dai et al. 2024): `expansion` times the dense layer's units in pieces of 1/granularity of it,
 * `granularity` of them for a token, of which `shared` always.
 */
export function fineGrained(o: { dense: number; expansion: number; granularity: number; shared?: number }): {
  experts: number;
  active: number;
  shared: number;
  hidden: number;
} {
  const { dense, expansion, granularity, shared = 0 } = o;
  if (dense % granularity) throw new AnsatzError(`moe sizing: ${dense} units do not split into ${granularity} pieces`);
  if (shared >= granularity)
    throw new AnsatzError(`moe sizing: ${shared} of ${granularity} pieces shared leave nothing to route`);
  return {
    experts: expansion * granularity - shared,
    active: granularity - shared,
    shared,
    hidden: dense / granularity,
  };
}

/** Different experts that B tokens of a decoding step touch, when balanced and independent: E (1 - (1 - k/E)^B). */
export const uniqueExperts = (experts: number, active: number, batch: number): number =>
  experts * (1 - (1 - active / experts) ** batch);
