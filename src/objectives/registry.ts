/** Objectives by name; each is one registration, and shared code never asks which one it has. */
import { z } from 'zod';
import { AnsatzError } from '../backend/errors.ts';
import type { Objective, Sizes } from './objective.ts';

export type ObjectiveConfig = { readonly kind: string; readonly [option: string]: unknown };

export interface ObjectiveKind<C> {
  readonly kind: string;
  /** One line for listings. */
  readonly summary: string;
  readonly options: z.ZodType<C>;
  /** @throws AnsatzError when the options do not fit the sizes. */
  build(options: C, sizes: Sizes): Objective;
}

const registry = new Map<string, ObjectiveKind<unknown>>();

export function registerObjective<C>(kind: ObjectiveKind<C>): void {
  registry.set(kind.kind, kind as unknown as ObjectiveKind<unknown>);
}

export const objectiveKinds = (): ObjectiveKind<unknown>[] => [...registry.values()];

/** Schema of the `objective` field: a kind's name, or its options. */
export const objectiveSchema: z.ZodType<ObjectiveConfig> = z
  .union([z.string(), z.looseObject({ kind: z.string() })])
  .transform((value, ctx): ObjectiveConfig => {
    const { kind, ...options } = typeof value === 'string' ? { kind: value } : value;
    const known = registry.get(kind);
    if (!known) {
      const names = [...registry.keys()].join(', ');
      ctx.addIssue({ code: 'custom', message: `unknown objective '${kind}': choose from ${names}` });
      return z.NEVER;
    }
    const parsed = known.options.safeParse(options);
    if (!parsed.success) {
      for (const issue of parsed.error.issues)
        ctx.addIssue({ code: 'custom', message: issue.message, path: [...issue.path] as (string | number)[] });
      return z.NEVER;
    }
    return { kind, ...(parsed.data as object) };
  });

export function buildObjective(config: ObjectiveConfig, sizes: Sizes): Objective {
  const known = registry.get(config.kind);
  if (!known) throw new AnsatzError(`unknown objective '${config.kind}'`);
  return known.build(config, sizes);
}
