/** A fine-tuning job: what it is asked to do, how it stands, and how the API shows it. */
import { z } from 'zod';
import { type AdapterConfig, adapterSchema } from '../../train/lora.ts';

const auto = z.literal('auto');
const maybe = <T extends z.ZodType>(schema: T) => schema.nullish().transform((v) => v ?? undefined);
const hyperparameters = z.object({
  batch_size: maybe(z.union([auto, z.number().int().min(1).max(256)])),
  learning_rate_multiplier: maybe(z.union([auto, z.number().gt(0).max(100)])),
  n_epochs: maybe(z.union([auto, z.number().int().min(1).max(50)])),
  /** Not OpenAI's: train a difference of low rank and leave the weights as they are. */
  adapter: maybe(adapterSchema),
});

export type Hyperparameters = z.output<typeof hyperparameters>;

export const jobSchema = z.object({
  model: z.string().min(1).max(512),
  training_file: z.string().min(1),
  validation_file: maybe(z.string().min(1)),
  suffix: maybe(z.string().regex(/^[A-Za-z0-9_-]{1,64}$/, 'must be 1 to 64 letters, digits, _ or -')),
  seed: maybe(
    z
      .number()
      .int()
      .min(0)
      .max(2 ** 31 - 1),
  ),
  hyperparameters: maybe(hyperparameters),
  method: maybe(
    z.object({
      type: z.literal('supervised', "only method 'supervised' is supported"),
      supervised: maybe(z.object({ hyperparameters: maybe(hyperparameters) })),
    }),
  ),
  metadata: maybe(z.record(z.string().max(64), z.string().max(512))),
});
export type JobRequest = z.output<typeof jobSchema>;

export type JobStatus = 'validating_files' | 'queued' | 'running' | 'paused' | 'succeeded' | 'failed' | 'cancelled';

/** What the training process reads. */
export interface JobSpec {
  readonly id: string;
  readonly name: string;
  /** The run folder that it starts from. */
  readonly base: string;
  readonly seed: number;
  readonly validation: boolean;
  readonly hyperparameters: {
    readonly batch_size: 'auto' | number;
    readonly learning_rate_multiplier: 'auto' | number;
    readonly n_epochs: 'auto' | number;
  };
  readonly adapter: AdapterConfig | null;
}

export interface JobCheckpoint {
  readonly id: string;
  readonly created: number;
  readonly step: number;
  readonly metrics: Readonly<Record<string, number>>;
}

/** Everything that is kept of a job: job.json. */
export interface Job {
  readonly spec: JobSpec;
  /** Models: the one that was named, and the one that is made. */
  readonly model: string;
  readonly tuned: string;
  readonly created: number;
  readonly trainingFile: string;
  readonly validationFile: string | null;
  readonly suffix: string | null;
  readonly metadata: Readonly<Record<string, string>> | null;
  status: JobStatus;
  finished: number | null;
  estimated: number | null;
  error: { code: string; message: string; param: string | null } | null;
  trainedTokens: number | null;
  resultFiles: string[];
  /** What 'auto' turned out to be. */
  chosen: { batch_size: number; learning_rate_multiplier: number; n_epochs: number } | null;
  checkpoints: JobCheckpoint[];
  /** The model has been deleted. */
  deleted: boolean;
}

export interface JobEvent {
  readonly id: string;
  readonly object: 'fine_tuning.job.event';
  readonly created_at: number;
  readonly level: 'info' | 'warn' | 'error';
  readonly message: string;
  readonly type: 'message' | 'metrics';
  readonly data: Readonly<Record<string, unknown>>;
}

export const ended = ({ status }: Job): boolean => ['succeeded', 'failed', 'cancelled'].includes(status);

export function jobObject(job: Job): { id: string; [field: string]: unknown } {
  const { spec } = job;
  const parameters = { ...spec.hyperparameters, ...job.chosen, ...(spec.adapter && { adapter: spec.adapter }) };
  return {
    object: 'fine_tuning.job',
    id: spec.id,
    model: job.model,
    created_at: job.created,
    finished_at: job.finished,
    estimated_finish: job.estimated,
    fine_tuned_model: job.status === 'succeeded' && !job.deleted ? job.tuned : null,
    organization_id: 'org-local',
    result_files: job.resultFiles,
    status: job.status,
    validation_file: job.validationFile,
    training_file: job.trainingFile,
    hyperparameters: parameters,
    method: { type: 'supervised', supervised: { hyperparameters: parameters } },
    trained_tokens: job.trainedTokens,
    error: job.error ?? { code: null, message: null, param: null },
    user_provided_suffix: job.suffix,
    seed: spec.seed,
    integrations: [],
    metadata: job.metadata,
  };
}

export const checkpointName = (job: Job, step: number): string => `${job.tuned}:ckpt-step-${step}`;

export const checkpointObject = (job: Job, c: JobCheckpoint): { id: string; [field: string]: unknown } => ({
  object: 'fine_tuning.job.checkpoint',
  id: c.id,
  created_at: c.created,
  fine_tuned_model_checkpoint: checkpointName(job, c.step),
  fine_tuning_job_id: job.spec.id,
  metrics: { step: c.step, ...c.metrics },
  step_number: c.step,
});
