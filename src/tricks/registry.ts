/**
 * A trick is a folder: what it changes, its options, its layer or transform, a toy task it must learn, and a README with
 * hypothesis, equations, suggested values, trade-offs and measured effect. Its index.ts registers the parts (slots,
 * layouts, parametrisations) and this description; shared code never asks which trick it is running.
 */
import { AnsatzError } from '../backend/errors.ts';

export type Confidence = 'high' | 'moderate' | 'low' | 'black swan' | 'rival';
export type Tier = 'foundational' | 'addon' | 'engineering';

/** Fields of a run config (model spec included) that switch a trick on; merged over a base config. */
export type ConfigPatch = { readonly [field: string]: unknown };

export interface Trick {
  readonly name: string;
  /** What it is, in one line. */
  readonly summary: string;
  /** What would be gained if it pays, in one sentence that a measurement can contradict. */
  readonly hypothesis: string;
  /** How sure the 2023 essay was; `rival` marks an honest baseline that it did not name. */
  readonly confidence: Confidence;
  /** foundational: needs training from scratch; addon: works in fine-tuning; engineering: no training. */
  readonly tier: Tier;
  /** Paper or code the definition follows. */
  readonly source: string;
  /**
   * How to switch it on in a base decoder config of a given width and depth.
   * Absent for tricks that are not a change of config.
   */
  patch?(base: {
    readonly width: number;
    readonly depth: number;
    readonly context: number;
    readonly heads: number;
    readonly hidden: number;
  }): ConfigPatch;
}

const tricks = new Map<string, Trick>();

export function registerTrick(trick: Trick): void {
  if (tricks.has(trick.name)) throw new Error(`trick '${trick.name}' is registered twice`);
  tricks.set(trick.name, trick);
}

/** All tricks, by name. */
export const allTricks = (): Trick[] => [...tricks.values()].sort((a, b) => (a.name < b.name ? -1 : 1));

export function trick(name: string): Trick {
  const found = tricks.get(name);
  if (!found)
    throw new AnsatzError(`no trick '${name}'`, {
      hint: `choose from ${allTricks()
        .map((t) => t.name)
        .join(', ')}`,
    });
  return found;
}

/** A config with a patch merged over it: objects merge, everything else (slots with another kind too) replaces. */
export function applyPatch<T extends object>(base: T, patch: ConfigPatch): T {
  const out = { ...base } as Record<string, unknown>;
  for (const [key, value] of Object.entries(patch)) {
    const old = out[key];
    const merge = isPlain(value) && isPlain(old) && (value.kind === undefined || value.kind === old.kind);
    out[key] = merge ? applyPatch(old, value) : value;
  }
  return out as T;
}

const isPlain = (v: unknown): v is Record<string, unknown> => typeof v === 'object' && v !== null && !Array.isArray(v);
