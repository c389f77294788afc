/** One training of the comparison, from parameters to held-out bits per byte; and one measurement of speed. */
import { bitsPerByte } from '../../data/baselines.ts';
import { HeldOutLoader } from '../../data/loader-held-out.ts';
import type { TokenBatch } from '../../data/types.ts';
import { createBatch } from '../../data/types.ts';
import { disposeTree } from '../../nn/index.ts';
import type { TrainConfig } from '../../train/config.ts';
import { trainBatch } from '../../train/objective.ts';
import { freshModel, heldOutRows, openRunData, type RunData, rowLength, trainLoader } from '../../train/session.ts';
import { EvalStep, TrainStep } from '../../train/step.ts';
import { median } from '../statistics.ts';

export interface RunTask {
  readonly kind: 'run';
  readonly config: TrainConfig;
  readonly heldOutTokens: number;
}

export interface RunResult {
  readonly bitsPerByte: number;
  /** Mean training loss of the last tenth of the steps, nats a target. */
  readonly trainLoss: number;
  readonly steps: number;
  readonly targets: number;
  /** Of training alone; evaluation and set-up are counted apart. */
  readonly seconds: number;
  /** The same as processor time, which other programs of the machine do not take part in. */
  readonly cpuSeconds: number;
  readonly otherSeconds: number;
}

export interface SpeedTask {
  readonly kind: 'speed';
  readonly base: TrainConfig;
  readonly arm: TrainConfig;
  readonly seconds: number;
  readonly heldOutTokens: number;
}

export interface SpeedResult {
  /** Of a step of the base, as a clock on the wall has it. */
  readonly baseMs: number;
  /** Wall time over processor time of the base: 1 when the process has a core for itself. */
  readonly busy: number;
  /** Processor time of a step over that of the base: median of the rounds, and their quartiles. */
  readonly ratio: number;
  readonly quartiles: readonly [number, number];
  readonly rounds: number;
  readonly setupSeconds: number;
  readonly evaluationSeconds: number;
}

export type Task = RunTask | SpeedTask;
export type TaskResult = RunResult | SpeedResult;

/** Rows of an evaluation batch, whatever an arm trains with. */
const EVALUATION_ROWS = 8;

/** Non-finite steps in a row after which a run has failed. */
const SKIPS = 10;

/** A model in training: everything it holds, and one step of it. */
class Training {
  readonly config: TrainConfig;
  readonly data: RunData;
  readonly loaded: ReturnType<typeof freshModel>;
  readonly step: TrainStep;
  private readonly loader: ReturnType<typeof trainLoader>;
  private readonly batches: TokenBatch[];
  at = 0;
  targets = 0;

  constructor(config: TrainConfig) {
    this.config = config;
    this.data = openRunData(config);
    this.loaded = freshModel(config);
    this.step = new TrainStep(this.loaded.device, this.loaded.model, this.loaded.params, config, rowLength(config));
    this.loader = trainLoader(config, this.data);
    this.batches = Array.from({ length: config.accumulate }, () => trainBatch(config));
  }

  async next(): Promise<{ loss: number; finite: boolean }> {
    for (const b of this.batches) this.loader.next(b);
    this.targets += this.batches.reduce((n, b) => n + b.targetCount, 0);
    return this.step.run(this.at++, this.batches);
  }

  dispose(): void {
    this.step.dispose();
    disposeTree(this.loaded.params);
    this.data.close();
  }
}

/**
 * Bits per byte of held-out text, left to right. An encoder-decoder is given the half row before each half row that it
 * predicts; a decoder reads the same tokens in the same places. Every target has the same tokens before it in all arms.
 * @param most stop after this many batches
 */
async function evaluate(t: Training, tokens: number, most = Number.POSITIVE_INFINITY) {
  const config = { ...t.config, batch: EVALUATION_ROWS };
  const length = rowLength(config);
  const made = heldOutRows(config, t.data, tokens);
  const decoder = made.encoder === 0;
  const half = Math.floor(length / 2);
  const loader = decoder
    ? new HeldOutLoader(t.data.heldOut, { batch: EVALUATION_ROWS, length, overlap: half, maxTokens: tokens })
    : made.loader;
  const into = createBatch(EVALUATION_ROWS, length);
  const { device, model, params } = t.loaded;
  const step = new EvalStep(device, model, params, config, length, made.encoder);
  let [nats, done] = [0, 0];
  try {
    const batches = decoder ? loader.batches : 0;
    if (decoder) for (; done < Math.min(batches, most); done++) nats += (await step.run(loader.read(done, into))).nats;
    else
      for (const batch of made.batches()) {
        if (done++ >= most) break;
        nats += (await step.run(batch)).nats;
      }
  } finally {
    step.dispose();
  }
  return { bitsPerByte: bitsPerByte(nats, loader.textBytes), batches: loader.batches };
}

/** Trains to the end and evaluates. `onStep` is told now and then. */
export async function runTask(task: RunTask, onStep: (done: number) => void = () => {}): Promise<RunResult> {
  const began = performance.now();
  const t = new Training(task.config);
  try {
    const { steps } = task.config;
    const last: number[] = [];
    let skipped = 0;
    const start = performance.now();
    const cpu = process.cpuUsage();
    let told = start;
    for (let k = 0; k < steps; k++) {
      const { loss, finite } = await t.next();
      skipped = finite ? 0 : skipped + 1;
      if (skipped >= SKIPS) throw new Error(`diverged: ${SKIPS} steps in a row were not finite at step ${k + 1}`);
      if (finite && k >= 0.9 * steps) last.push(loss);
      if (performance.now() - told > 500) {
        told = performance.now();
        onStep(k + 1);
      }
    }
    const end = performance.now();
    const used = process.cpuUsage(cpu);
    const result = await evaluate(t, task.heldOutTokens);
    if (!Number.isFinite(result.bitsPerByte)) throw new Error('its held-out loss is not finite');
    return {
      bitsPerByte: result.bitsPerByte,
      trainLoss: last.length > 0 ? last.reduce((a, b) => a + b, 0) / last.length : Number.NaN,
      steps,
      targets: t.targets,
      seconds: (end - start) / 1000,
      cpuSeconds: (used.user + used.system) / 1e6,
      otherSeconds: (start - began + performance.now() - end) / 1000,
    };
  } finally {
    t.dispose();
  }
}

/** Shorter turns than this are not measured well: the system counts processor time in small pieces. */
const TURN_MS = 20;
/** Rounds before anything counts: buffers are made, code is compiled. */
const WARM_UP = 3;
const LEAST_ROUNDS = 8;

/**
 * Processor time of a step, reading its rows included, in turns with the base: whatever else the machine does to caches
 * and clocks meets both alike.
 */
export async function speedTask(task: SpeedTask): Promise<SpeedResult> {
  const began = performance.now();
  const arm = new Training({ ...task.arm, steps: 10_000 });
  const setup = performance.now() - began;
  const base = new Training({ ...task.base, steps: 10_000 });
  try {
    let steps = 1;
    const time = async (t: Training): Promise<{ wall: number; cpu: number }> => {
      const start = performance.now();
      const before = process.cpuUsage();
      for (let k = 0; k < steps; k++) await t.next();
      const { user, system } = process.cpuUsage(before);
      return { wall: (performance.now() - start) / steps, cpu: (user + system) / 1000 / steps };
    };
    let shortest = TURN_MS;
    for (let k = 0; k < WARM_UP; k++) for (const t of [arm, base]) shortest = Math.min(shortest, (await time(t)).wall);
    steps = Math.ceil(TURN_MS / shortest);
    const ratios: number[] = [];
    const bases: { wall: number; cpu: number }[] = [await time(base)];
    for (
      const end = performance.now() + task.seconds * 1000;
      performance.now() < end || ratios.length < LEAST_ROUNDS;
    ) {
      const own = await time(arm);
      bases.push(await time(base));
      ratios.push((2 * own.cpu) / (bases[bases.length - 1].cpu + bases[bases.length - 2].cpu));
    }
    const timed = async (batches: number): Promise<{ ms: number; batches: number }> => {
      const start = performance.now();
      const { batches: all } = await evaluate(arm, task.heldOutTokens, batches);
      return { ms: performance.now() - start, batches: all };
    };
    await timed(1);
    const [one, three] = [await timed(1), await timed(3)];
    const batchMs = Math.max(0, three.ms - one.ms) / Math.max(1, Math.min(3, one.batches) - 1);
    const sorted = ratios.sort((a, b) => a - b);
    const at = (q: number): number => sorted[Math.round(q * (sorted.length - 1))];
    return {
      baseMs: median(bases.map((t) => t.wall)),
      busy: median(bases.map((t) => t.wall)) / median(bases.map((t) => t.cpu)),
      ratio: median(sorted),
      quartiles: [at(0.25), at(0.75)],
      rounds: sorted.length,
      setupSeconds: setup / 1000,
      evaluationSeconds: (one.ms + batchMs * (one.batches - 1)) / 1000,
    };
  } finally {
    arm.dispose();
    base.dispose();
  }
}
