/** Optimisers register themselves with their options; a run's config names one (the `optimiser` field). */
import type { z } from 'zod';
import type { Device } from '../../backend/device.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { kindSchema, type NamedParam } from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';

export interface TrainedParam extends NamedParam {
  readonly tensor: Tensor;
}

export interface Optimiser {
  /** State tensors by name ("m.blocks.0.ffn.up"), for checkpoints. */
  readonly state: ReadonlyMap<string, Tensor>;
  /** Puts the state back to its start. */
  reset(): void;
  /** Dispatches the update of every parameter; `scalars` holds this step's rates (docs/kernels.md, optimisers). */
  update(grads: readonly Tensor[], scalars: Tensor): void;
  /** Bias corrections 1 - beta^t of step t (counted from 1). */
  corrections(t: number): [number, number];
  /** Momentum of step t (counted from 1), where a kernel reads it from the step scalars. */
  momentum?(t: number): number;
}

/** What every optimiser's options have; the schedule multiplies `lr`. */
export interface OptimiserConfig {
  readonly kind: string;
  readonly lr: number;
  readonly [option: string]: unknown;
}

export interface OptimiserKind<C extends { readonly lr: number }> {
  readonly kind: string;
  /** One line for listings. */
  readonly summary: string;
  readonly options: z.ZodType<C>;
  make(config: C, params: readonly TrainedParam[], device: Device): Optimiser;
}

// biome-ignore lint/suspicious/noExplicitAny: options of different kinds share one table
const registry = new Map<string, OptimiserKind<any>>();

export function registerOptimiser<C extends { readonly lr: number }>(kind: OptimiserKind<C>): void {
  registry.set(kind.kind, kind);
}

export const optimiserKinds = (): { kind: string; summary: string }[] =>
  [...registry.values()].map(({ kind, summary }) => ({ kind, summary }));

/** Schema of the `optimiser` field: `kind` picks the options' schema. A bare string is a kind with its defaults. */
export const optimiserSchema = kindSchema<OptimiserConfig>({
  what: 'optimiser',
  find: (kind) => registry.get(kind),
  names: () => [...registry.keys()],
});

export function makeOptimiser(config: OptimiserConfig, params: readonly TrainedParam[], device: Device): Optimiser {
  const known = registry.get(config.kind);
  if (!known) throw new AnsatzError(`unknown optimiser '${config.kind}'`);
  return known.make(config, params, device);
}
