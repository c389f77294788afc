/** Everything that determines a training run, as data: checked, defaulted, hashed into the run folder. */
import { z } from 'zod';
import '../tricks/index.ts';
import { AnsatzError } from '../backend/errors.ts';
import { describeIssues, headWidth, modelSpecSchema } from '../model/spec.ts';
import { hasGeneralMasks, isPastOnly } from '../nn/index.ts';
import { objectiveSchema } from '../objectives/index.ts';
import { adapterSchema } from './lora.ts';
import { objectiveOf } from './objective.ts';
import { optimiserSchema } from './optimisers/index.ts';

const fraction = z.number().min(0).max(1);

export const scheduleSchema = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: z.literal('cosine'),
    /** Share of the steps for linear warm-up. */
    warmup: fraction.default(0.05),
    /** Final learning rate as a share of the peak. */
    floor: fraction.default(0.05),
  }),
  z.strictObject({
    /** Warm-up, stable, decay: any point of the stable part can be continued (Hu et al. 2024, MiniCPM). */
    kind: z.literal('wsd'),
    warmup: fraction.default(0.05),
    decay: fraction.default(0.3),
    floor: fraction.default(0.02),
    shape: z.enum(['linear', 'sqrt', 'cosine']).default('linear'),
  }),
  z.strictObject({ kind: z.literal('constant'), warmup: fraction.default(0) }),
]);

export const trainConfigSchema = z.strictObject({
  name: z.string().min(1).default('run'),
  seed: z.int().min(0).default(1),
  device: z.string().default('cpu'),
  /** Matrix products: bf16 operands with f32 sums, or f32. Weights are kept in f32 either way. */
  precision: z.enum(['bf16', 'f32']).default('bf16'),
  model: modelSpecSchema,
  data: z.strictObject({
    /** Folder with token shards (train.json, heldout.json) and tokenizer.json. */
    folder: z.string(),
    packing: z.enum(['stream', 'whole']).default('stream'),
    /** Whether tokens may attend across document borders. */
    crossDocuments: z.boolean().default(false),
  }),
  /** What is predicted from what; by default every token from those before it. */
  objective: objectiveSchema.prefault('causal'),
  /** A run whose newest weights this one starts from. */
  from: z.string().min(1).optional(),
  /** Keep the weights that it starts from, and train a difference of low rank. */
  adapter: adapterSchema.optional(),
  /** A run that teaches this one: (1 - lambda) cross-entropy + lambda T^2 KL(teacher || student). */
  distil: z
    .strictObject({
      teacher: z.string().min(1),
      lambda: fraction.default(0.5),
      temperature: z.number().positive().default(2),
      /** From fresh weights, or from layers of the teacher's at even distances. */
      start: z.enum(['fresh', 'layers']).default('fresh'),
    })
    .optional(),
  /** The run whose weights these were made of without training, and how. */
  madeFrom: z
    .strictObject({
      run: z.string(),
      step: z.int().min(0),
      by: z.enum(['quantize', 'prune']),
      options: z.record(z.string(), z.union([z.string(), z.number(), z.boolean()])),
    })
    .optional(),
  /** Rows of a micro-batch, and how many micro-batches make a step. */
  batch: z.int().positive().default(8),
  accumulate: z.int().positive().default(1),
  /** Tokens of a row; by default the model's context. */
  length: z.int().positive().optional(),
  steps: z.int().positive(),
  optimiser: optimiserSchema.prefault({ kind: 'adamw' }),
  schedule: scheduleSchema.prefault({ kind: 'wsd' }),
  /** Largest global gradient norm; 0 does not clip. */
  clip: z.number().min(0).default(1),
  /** Stop after this many non-finite steps in a row. */
  stopAfterSkips: z.int().positive().default(10),
  evaluate: z.strictObject({ every: z.int().min(0).default(0), tokens: z.int().positive().optional() }).prefault({}),
  checkpoint: z
    .strictObject({
      every: z.int().min(0).default(0),
      keepLast: z.int().positive().default(3),
      keepEvery: z.int().positive().optional(),
    })
    .prefault({}),
});

export type TrainConfig = z.output<typeof trainConfigSchema>;
export type TrainConfigInput = z.input<typeof trainConfigSchema>;
export type ScheduleConfig = TrainConfig['schedule'];

/**
 * Checks a run's configuration and fills in defaults.
 * @throws AnsatzError that names every field that is wrong.
 */
export function parseTrainConfig(input: unknown): TrainConfig {
  const parsed = trainConfigSchema.safeParse(input);
  if (!parsed.success)
    throw new AnsatzError(`run config: ${describeIssues(parsed.error)}`, { hint: 'see docs/train.md for the fields' });
  const config = parsed.data;
  headWidth(config.model);
  const length = config.length ?? config.model.context;
  if (length > config.model.context)
    throw new AnsatzError(`run config: rows of ${length} tokens, the model's context is ${config.model.context}`, {
      hint: 'lower `length` or raise `model.context`',
    });
  if (config.adapter && config.from === undefined)
    throw new AnsatzError('run config: an adapter needs the weights of another run', {
      hint: 'name that run: from, or --from',
    });
  checkObjective(config);
  return config;
}

/** An objective must suit the layout, the attention kinds and the packing. */
function checkObjective(config: TrainConfig): void {
  const { shape, packs } = objectiveOf(config);
  const { kind } = config.objective;
  if (packs && config.data.packing !== 'stream')
    throw new AnsatzError(`run config: objective ${kind} packs its rows itself: data.packing must be stream`);
  if (shape.visible && isPastOnly(config.model.positions))
    throw new AnsatzError(
      `run config: with positions '${config.model.positions.kind}' scores grow with distance ahead of a query, and objective ${kind} lets queries see ahead`,
      { hint: "use positions 'rope', or set objective.bidirectional=false" },
    );
  if (!shape.visible && !shape.keep) return;
  const { attention, overrides } = config.model;
  const narrow = [attention, ...overrides.flatMap((o) => o.attention ?? [])].find((a) => !hasGeneralMasks(a));
  if (narrow)
    throw new AnsatzError(
      `run config: attention '${narrow.kind}' is causal by construction, objective ${kind} is not`,
      {
        hint: shape.visible ? "use attention 'full', or set objective.bidirectional=false" : "use attention 'full'",
      },
    );
}
