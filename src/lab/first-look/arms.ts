/** What is compared: every registered trick over the base, and a few arms that the comparison itself needs. */
import { AnsatzError } from '../../backend/errors.ts';
import { accountFor } from '../../train/account.ts';
import { parseTrainConfig, type TrainConfig, type TrainConfigInput } from '../../train/config.ts';
import { objectiveOf } from '../../train/objective.ts';
import { optimiserSchema } from '../../train/optimisers/index.ts';
import { allTricks, applyPatch, type ConfigPatch, trick } from '../../tricks/index.ts';
import { BASE_RATE, type BaseSize, baseConfig } from './base.ts';
import { positionsPerStep, rowsFor, targetsPerStep } from './fair.ts';
import { EQUAL, fitParameters, parametersOf } from './fit.ts';

export const groups = [
  ...['control', 'attention', 'feed-forward', 'positions', 'output', 'layout', 'objective'],
  ...['optimiser', 'parametrisation', 'stacked', 'other'],
] as const;

/** A comparison: at equal positions (tokens computed), or in equal time. */
export type Comparison = 'positions' | 'time';

export interface Arm {
  readonly name: string;
  readonly group: string;
  readonly summary: string;
  /** Absent when the arm is refused. */
  readonly config?: TrainConfig;
  readonly refused?: string;
  readonly parameters: number;
  readonly positionsPerStep: number;
  readonly targetsPerStep: number;
  /** FLOPs of matrix products and attention, a position in training. */
  readonly flopsPerPosition: number;
  readonly compare: readonly Comparison[];
  readonly notes: readonly string[];
}

/** An arm that comes from outside, such as a recipe. */
export interface ExtraArm {
  readonly name: string;
  readonly summary: string;
  readonly input: TrainConfigInput;
}

export const BASE = 'base';
export const CONTROL = 'base-again';

interface Draft {
  readonly name: string;
  readonly group: string;
  readonly summary: string;
  readonly make: () => TrainConfigInput;
  /** Scale the hidden sizes to the base's parameters (the default). */
  readonly fit?: boolean;
  readonly compare?: readonly Comparison[];
  readonly notes?: readonly string[];
}

/** The slot or field that a patch changes; several parts make a stack. */
function groupOf(patch: ConfigPatch): string {
  const model = (patch.model ?? {}) as ConfigPatch;
  if (model.layout) return 'layout';
  for (const [field, group] of [
    ['attention', 'attention'],
    ['ffn', 'feed-forward'],
    ['positions', 'positions'],
    ['head', 'output'],
    ['parametrisation', 'parametrisation'],
  ] as const)
    if (model[field]) return group;
  return patch.objective ? 'objective' : patch.optimiser ? 'optimiser' : 'other';
}

/** Default rate of AdamW in the table of optimisers: the others' defaults stand in their documented ratio to it. */
const ADAMW_DEFAULT = 3e-3;

/** An optimiser's own rates, as far above or below the base's as its defaults are above or below AdamW's. */
function withRate(config: TrainConfig): TrainConfig {
  const { kind } = config.optimiser;
  if (kind === 'adamw') return config;
  const scaled = (value: unknown): unknown =>
    typeof value === 'object' && value !== null
      ? Object.fromEntries(
          Object.entries(value).map(([k, v]) => [
            k,
            k === 'lr' ? ((v as number) * BASE_RATE) / ADAMW_DEFAULT : scaled(v),
          ]),
        )
      : value;
  return parseTrainConfig({ ...config, optimiser: scaled(optimiserSchema.parse(config.optimiser)) });
}

/** Fits a draft to the base: vocabulary of its objective, rows of a step, parameters. */
function finish(draft: Draft, base: TrainConfig): Arm {
  const { name, group, summary, fit = true, compare = ['positions', 'time'] } = draft;
  const head = { name, group, summary, compare };
  const nothing = { parameters: 0, positionsPerStep: 0, targetsPerStep: 0, flopsPerPosition: 0, notes: [] };
  try {
    const input = draft.make();
    const first = parseTrainConfig(input);
    // Special tokens of an objective come on top of the text's vocabulary.
    const vocab = base.model.vocab + objectiveOf(first).specials.length;
    const sized = parseTrainConfig({ ...first, model: { ...first.model, vocab } });
    const rows = parseTrainConfig({ ...sized, batch: rowsFor(sized, positionsPerStep(base)) });
    const target = parametersOf(base);
    const { config, parameters } = fit
      ? fitParameters(withRate(rows) as TrainConfigInput, target)
      : { config: withRate(rows), parameters: parametersOf(rows) };
    const notes = [...(draft.notes ?? [])];
    if (Math.abs(parameters / target - 1) > EQUAL && fit)
      notes.push(`parameters not equal: ${(parameters / target).toFixed(3)}x is the nearest it allows`);
    const targets = targetsPerStep(config) / positionsPerStep(config);
    const usual = targetsPerStep(base) / positionsPerStep(base);
    if (Math.abs(targets / usual - 1) > 0.01)
      notes.push(`${(targets / usual).toFixed(2)}x the base's targets at equal positions`);
    const step = positionsPerStep(config) / positionsPerStep(base);
    if (Math.abs(step - 1) > 0.1)
      notes.push(
        `a step is ${step.toFixed(1)}x the base's: fewer updates at equal positions`.replace(
          'fewer',
          step > 1 ? 'fewer' : 'more',
        ),
      );
    return {
      ...head,
      config,
      parameters,
      positionsPerStep: positionsPerStep(config),
      targetsPerStep: targetsPerStep(config),
      // Recorded on the meta device: what cannot be built is refused here, before anything runs.
      flopsPerPosition: accountFor(config).modelFlopsPerToken,
      notes,
    };
  } catch (error) {
    if (!(error instanceof AnsatzError)) throw error;
    return { ...head, ...nothing, refused: error.message };
  }
}

/** All arms, the base first, by group. `only` keeps the named ones besides the base and its control. */
export function buildArms(
  size: BaseSize,
  data: { folder: string; vocab: number },
  options: { extra?: readonly ExtraArm[]; only?: readonly string[] } = {},
): Arm[] {
  const input = baseConfig(size, data);
  const base = parseTrainConfig(input);
  const { width, depth, heads, hidden, length } = size;
  const patchOf = (name: string): ConfigPatch => trick(name).patch!({ width, depth, context: length, heads, hidden });
  const patched = (name: string) => (): TrainConfigInput => applyPatch(structuredClone(input), patchOf(name));
  const control: Draft = { name: BASE, group: 'control', summary: 'the base', make: () => input, fit: false };
  const again: Draft = {
    ...control,
    name: CONTROL,
    summary: 'the base once more: nothing should be found here',
    compare: ['positions'],
  };
  const tricks = allTricks()
    .filter((t) => t.patch)
    .map((t): Draft => {
      const addon = t.tier === 'addon' ? ['meant for a trained model; here trained from scratch'] : [];
      return { name: t.name, group: groupOf(patchOf(t.name)), summary: t.summary, make: patched(t.name), notes: addon };
    });
  // Mixtures are meant to pay with more parameters at the same active ones: the patch as it is.
  const wide = tricks
    .filter((d) => d.name === 'moe')
    .map(
      (d): Draft => ({
        ...d,
        name: 'moe-wide',
        summary: "the base's active parameters, and more of them in all",
        fit: false,
        notes: ["not equal parameters: the base's active ones"],
      }),
    );
  const extra = (options.extra ?? []).map(
    ({ name, summary, input: own }): Draft => ({ name, summary, group: 'stacked', make: () => own }),
  );
  const drafts = [control, again, ...tricks, ...wide, ...extra];
  const names = drafts.map((d) => d.name);
  const unknown = options.only?.find((name) => !names.includes(name));
  if (unknown !== undefined)
    throw new AnsatzError(`no arm '${unknown}'`, { hint: `choose from ${names.slice(1).join(', ')}` });
  const always = [BASE, CONTROL];
  const kept = drafts.filter((d) => always.includes(d.name) || !options.only || options.only.includes(d.name));
  const rank = (d: Draft): number => (groups as readonly string[]).indexOf(d.group);
  return kept.sort((a, b) => rank(a) - rank(b)).map((d) => finish(d, base));
}
