// Everything a run can say, as one discriminated union. The trainer writes these; the terminal, the reports, the
// dashboard and the tests read them, from memory or from the run's events.jsonl, one JSON object a line.
//
// The log is append-only. When a run is resumed from step s, what it had logged beyond s is not erased: a `resumed`
// event with step s is appended, and readers treat events of later steps that came before it as superseded
// (RunHistory in history.ts does). So the file keeps what really happened, and resuming can never destroy a log.
//
// Units: time is ISO 8601 UTC; elapsed is seconds of training including earlier sittings; losses are nats per token.
// JSON has no NaN or infinity: fields that may be non-finite are typed `number | null`, and null means non-finite.

interface Base {
  /** When it was written; filled in by the writer. */
  time: string;
}

export interface RunStartEvent extends Base {
  event: 'run-start';
  run: string;
  /** sha256 of the canonical config, as in config.json. */
  config: string;
  version: string;
  device: string;
  seed: number;
  pid: number;
  host: string;
}

/** What the run is about to do, before it does it. */
export interface PlanEvent extends Base {
  event: 'plan';
  parameters: number;
  steps: number;
  tokens: number;
  tokensPerStep: number;
  /** Positions of a step that have a target. */
  lossTokensPerStep?: number;
  flopsPerToken: number;
  memoryBytes: number;
  /** FLOP/s that utilisation is measured against; null when the device's peak is unknown. */
  peakFlops: number | null;
  /** Time budget: training ends at `steps` or after this many seconds, whichever comes first. */
  seconds?: number;
}

export interface StepEvent extends Base {
  event: 'step';
  /** Optimiser steps completed, this one included. */
  step: number;
  /** Tokens trained on so far. */
  tokens: number;
  /** Those that had a target. */
  lossTokens?: number;
  loss: number;
  gradNorm: number;
  lr: number;
  tokensPerSecond: number;
  /** Model FLOP utilisation, 0 to 1 (https://arxiv.org/abs/2204.02311, appendix B); null when the peak is unknown. */
  mfu: number | null;
  msPerStep: number;
  elapsed: number;
}

export interface EvalEvent extends Base {
  event: 'eval';
  step: number;
  tokens: number;
  /** On held-out text. */
  loss: number;
  /** Independent of the tokenizer: loss * tokens / (ln 2 * bytes). */
  bitsPerByte: number;
  /** Bits per byte of other compressors on the same text, by name (gzip, xz). */
  baselines: Record<string, number>;
}

/** How layers that choose are doing, by their recent training passes: balance of experts, use of units. */
export interface LayersEvent extends Base {
  event: 'layers';
  step: number;
  layers: { layer: string; measures: Record<string, number> }[];
}

export interface SampleEvent extends Base {
  event: 'sample';
  step: number;
  prompt: string;
  completion: string;
}

export interface CheckpointEvent extends Base {
  event: 'checkpoint';
  step: number;
  path: string;
  bytes: number;
  ms: number;
}

/** A step whose loss or gradient was not finite; the optimiser did not move. */
export interface SkipEvent extends Base {
  event: 'skip';
  step: number;
  loss: number | null;
  gradNorm: number | null;
  /** Non-finite steps in a row, this one included. */
  consecutive: number;
  /** File with the batch that caused it. */
  dump?: string;
}

export interface WarningEvent extends Base {
  event: 'warning';
  message: string;
  hint?: string;
}

/** Something slower or less exact than what was wanted is running; said once for each cause. */
export interface FallbackEvent extends Base {
  event: 'fallback';
  op: string;
  wanted: string;
  used: string;
  why: string;
}

export interface ResumedEvent extends Base {
  event: 'resumed';
  /** The step whose checkpoint was loaded. */
  step: number;
  checkpoint: string;
}

/** The run began with another run's weights. Names are those of parameters. */
export interface StartedFromEvent extends Base {
  event: 'started-from';
  run: string;
  step: number;
  /** Parameters with the other run's values; `grown` ones among them have new rows as well. */
  copied: number;
  grown: string[];
  /** Stacks of layers (experts) that started as copies of a single one. */
  stacked?: string[];
  /** Parameters that the other run did not have. */
  fresh: string[];
  /** What it had and this model has not. */
  unused: string[];
}

/** completed: all steps done; stopped: asked to stop, can resume; failed: an error, in `message`. */
export type RunStatus = 'completed' | 'stopped' | 'failed';

export interface RunEndEvent extends Base {
  event: 'run-end';
  status: RunStatus;
  step: number;
  elapsed: number;
  message?: string;
}

export type RunEvent =
  | RunStartEvent
  | PlanEvent
  | StepEvent
  | EvalEvent
  | LayersEvent
  | SampleEvent
  | CheckpointEvent
  | SkipEvent
  | WarningEvent
  | FallbackEvent
  | ResumedEvent
  | StartedFromEvent
  | RunEndEvent;

type WithoutTime<E> = E extends RunEvent ? Omit<E, 'time'> : never;

/** An event as its author makes it: the writer adds the time. */
export type NewRunEvent = WithoutTime<RunEvent>;

export type EventKind = RunEvent['event'];
export type EventOf<K extends EventKind> = Extract<RunEvent, { event: K }>;

export function stamped(event: NewRunEvent, at: Date = new Date()): RunEvent {
  const { event: kind, ...rest } = event;
  return { event: kind, time: at.toISOString(), ...rest } as RunEvent;
}
