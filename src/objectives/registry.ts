/** Objectives by name; each is one registration, and shared code never asks which one it has. */
import type { z } from 'zod';
import { AnsatzError } from '../backend/errors.ts';
import { type KindConfig, kindSchema } from '../nn/index.ts';
import type { Objective, Sizes } from './objective.ts';

export type ObjectiveConfig = KindConfig;

export interface ObjectiveKind<C> {
  readonly kind: string;
  /** One line for listings. */
  readonly summary: string;
  readonly options: z.ZodType<C>;
  /** @throws AnsatzError when the options do not fit the sizes. */
  build(options: C, sizes: Sizes): Objective;
  /** The same options with whatever they take from the sizes written out; absent: they take nothing. */
  settled?(options: C, sizes: Sizes): C;
}

const registry = new Map<string, ObjectiveKind<unknown>>();

export function registerObjective<C>(kind: ObjectiveKind<C>): void {
  registry.set(kind.kind, kind as unknown as ObjectiveKind<unknown>);
}

export const objectiveKinds = (): ObjectiveKind<unknown>[] => [...registry.values()];

/** Schema of the `objective` field: a kind's name, or its options. */
export const objectiveSchema: z.ZodType<ObjectiveConfig> = kindSchema({
  what: 'objective',
  find: (kind) => registry.get(kind),
  names: () => [...registry.keys()],
});

export function buildObjective(config: ObjectiveConfig, sizes: Sizes): Objective {
  const known = registry.get(config.kind);
  if (!known) throw new AnsatzError(`unknown objective '${config.kind}'`);
  return known.build(config, sizes);
}

/** A config that stays the same objective, special tokens included, for rows of another length. */
export function settledObjective(config: ObjectiveConfig, sizes: Sizes): ObjectiveConfig {
  const settled = registry.get(config.kind)?.settled?.(config, sizes) as object | undefined;
  return settled ? { ...settled, kind: config.kind } : config;
}
