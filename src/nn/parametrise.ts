/**
 * Parametrisations: how initialisation, learning rates and forward factors depend on a model's sizes. One function from
 * a parameter's role to its scaling; nothing else in the code may scale by width. Kinds register themselves; `standard`
 * leaves everything as the layers declare it.
 */
import { z } from 'zod';
import { AnsatzError } from '../backend/errors.ts';
import { type KindConfig, kindSchema } from './kinds.ts';
import type { NamedParam, ParamSpec } from './module.ts';

/** Factors on the forward pass. */
export interface Scales {
  /** On embeddings as they enter the residual stream. */
  readonly embedding: number;
  /** On logits. */
  readonly logits: number;
  /** On what each branch adds to the residual stream. */
  readonly branch: number;
  /** On q.k, for a head of this width. */
  attention(headWidth: number): number;
}

export interface ScaledSizes {
  readonly width: number;
  readonly depth: number;
  readonly headWidth: number;
}

export interface Parametrisation {
  readonly scales: Scales;
  /** A parameter's own initialisation and optimiser factors. */
  param(p: NamedParam): ParamSpec;
}

export interface ParametrisationKind<C> {
  readonly kind: string;
  readonly summary: string;
  readonly options: z.ZodType<C>;
  build(config: C, sizes: ScaledSizes): Parametrisation;
}

const registry = new Map<string, ParametrisationKind<unknown>>();

export function registerParametrisation<C>(kind: ParametrisationKind<C>): void {
  registry.set(kind.kind, kind as unknown as ParametrisationKind<unknown>);
}

registerParametrisation({
  kind: 'standard',
  summary: 'initialisation and learning rates as the layers declare them',
  options: z.strictObject({}),
  build: () => ({
    scales: { embedding: 1, logits: 1, branch: 1, attention: (d) => 1 / Math.sqrt(d) },
    param: (p) => p.spec,
  }),
});

/** Schema of the `parametrisation` field: a kind's name, or its options. */
export const parametrisationSchema: z.ZodType<KindConfig> = kindSchema({
  what: 'parametrisation',
  find: (kind) => registry.get(kind),
  names: () => [...registry.keys()],
});

export function buildParametrisation(config: KindConfig, sizes: ScaledSizes): Parametrisation {
  const known = registry.get(config.kind);
  if (!known) throw new AnsatzError(`unknown parametrisation '${config.kind}'`);
  return known.build(config, sizes);
}
