/** The training loop: batches in, events out, checkpoints on the way; resuming equals never having stopped. */
import { mkdirSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { AnsatzError } from '../backend/errors.ts';
import { openDevice } from '../backend/index.ts';
import type { Loader } from '../data/loader.ts';
import { writeAtomically } from '../data/shards-write.ts';
import type { TokenBatch } from '../data/types.ts';
import { disposeTree, isTrainable, measured } from '../nn/index.ts';
import { type Account, accountFor, refuseWhatDoesNotFit } from './account.ts';
import { type BaseNote, baseNoteOf, baseToTrainOn, type QuantisedBase } from './base.ts';
import { parseTrainConfig, type TrainConfig } from './config.ts';
import type { Teacher } from './distil.ts';
import { type HeldOutLoss, heldOutLoss } from './evaluate.ts';
import { sameIds, startFrom } from './from.ts';
import { trainBatch } from './objective.ts';
import { measurePeak } from './peak.ts';
import { type Checkpoint, latestCheckpoint, supersedeAfter } from './run/checkpoint.ts';
import type { EventWriter } from './run/event-log.ts';
import type { NewRunEvent, RunEvent, RunStatus } from './run/events.ts';
import type { RunFolder } from './run/folder.ts';
import { type Progress, restoreRun, saveRun } from './saving.ts';
import { freshModel, type LoadedModel, openRunData, type RunData, rowLength, trainLoader } from './session.ts';
import { TrainStep } from './step.ts';
import { openTeacher, sparserLayers, taughtLoss } from './teacher.ts';

export interface TrainOptions {
  /** Continue from the newest valid checkpoint. */
  resume?: boolean;
  /** Sees every event as it is written. */
  onEvent?: (event: RunEvent) => void;
  /** Asks the run to save and stop after the step in progress. */
  signal?: AbortSignal;
}

export interface TrainSummary {
  readonly status: RunStatus;
  readonly step: number;
  readonly tokens: number;
  readonly loss: number;
  readonly elapsed: number;
  readonly heldOut: HeldOutLoss | undefined;
}

/**
 * Trains a run folder's config to its end (or until `signal`).
 * @throws AnsatzError for bad data or config, and when too many steps in a row are not finite.
 */
export async function train(run: RunFolder, options: TrainOptions = {}): Promise<TrainSummary> {
  const lock = run.lock();
  const log = run.openEvents();
  try {
    const config = parseTrainConfig(run.config);
    const newest = options.resume ? await latestCheckpoint(run, { verify: 'size' }) : undefined;
    const base = await baseToTrainOn(config, openDevice(config.device), newest && baseNoteOf(newest));
    const teacher = await openTeacher(config);
    try {
      return await new Trainer(run, log, options, base, teacher).run();
    } finally {
      if (teacher) disposeTree(teacher.params);
    }
  } finally {
    log.close();
    lock.release();
  }
}

class Trainer {
  readonly folder: RunFolder;
  private readonly log: EventWriter;
  private readonly options: TrainOptions;
  private readonly loaded: LoadedModel;
  readonly config: TrainConfig;
  readonly data: RunData;
  private readonly account: Account;
  readonly loader: Loader;
  readonly step: TrainStep;
  private readonly batches: TokenBatch[];
  private at: Progress = { step: 0, tokens: 0, lossTokens: 0, elapsed: 0, skipsInARow: 0 };
  private loss = Number.NaN;
  private savedStep = -1;
  private readonly quantised: QuantisedBase | null;

  get base(): BaseNote | null {
    return this.quantised?.note ?? null;
  }

  constructor(
    folder: RunFolder,
    log: EventWriter,
    options: TrainOptions,
    base: QuantisedBase | null = null,
    teacher?: Teacher,
  ) {
    this.folder = folder;
    this.quantised = base;
    this.log = log;
    this.options = options;
    this.config = parseTrainConfig(folder.config);
    this.account = accountFor(this.config, base?.params);
    refuseWhatDoesNotFit(this.account, this.config.device);
    this.data = openRunData(this.config);
    const length = rowLength(this.config);
    try {
      this.loader = trainLoader(this.config, this.data);
      this.loaded = freshModel(this.config, base);
    } catch (error) {
      this.data.close();
      throw error;
    }
    const { device, model, params } = this.loaded;
    try {
      const lossOf = taughtLoss(this.config, this.loaded, teacher, this.data.tokenizer);
      this.step = new TrainStep(device, model, params, this.config, length, lossOf);
    } catch (error) {
      this.data.close();
      disposeTree(params);
      throw error;
    }
    this.batches = Array.from({ length: this.config.accumulate }, () => trainBatch(this.config));
  }

  async run(): Promise<TrainSummary> {
    try {
      const checkpoint = this.options.resume ? await this.newest() : undefined;
      if (checkpoint) await this.restore(checkpoint);
      else await this.start();
      return await this.loop();
    } finally {
      this.data.close();
      this.step.dispose();
      disposeTree(this.loaded.params);
    }
  }

  private async loop(): Promise<TrainSummary> {
    const { config, options } = this;
    let heldOut: TrainSummary['heldOut'];
    let status: RunStatus = 'completed';
    try {
      const peak = await this.plan();
      let clock = performance.now();
      while (this.at.step < config.steps) {
        if (options.signal?.aborted) {
          status = 'stopped';
          break;
        }
        clock = await this.oneStep(clock, peak);
        const { every } = config.evaluate;
        if (every > 0 && this.at.step % every === 0 && this.at.step < config.steps)
          heldOut = await this.evaluate(config.evaluate.tokens);
        // Skipped steps changed nothing, and must not push sound checkpoints out of the ones that are kept.
        if (config.checkpoint.every > 0 && this.at.step % config.checkpoint.every === 0 && this.at.skipsInARow === 0)
          await this.save();
        clock = performance.now();
      }
      if (this.savedStep !== this.at.step) await this.save();
      if (status === 'completed') heldOut = await this.evaluate();
    } catch (error) {
      this.emit({
        event: 'run-end',
        status: 'failed',
        step: this.at.step,
        elapsed: this.at.elapsed,
        message: (error as Error).message,
      });
      throw error;
    }
    this.emit({ event: 'run-end', status, step: this.at.step, elapsed: this.at.elapsed });
    return { status, step: this.at.step, tokens: this.at.tokens, loss: this.loss, elapsed: this.at.elapsed, heldOut };
  }

  /** The checkpoint to go on from; none when the run stopped before its first. */
  private async newest(): Promise<Checkpoint | undefined> {
    const problems: (NewRunEvent & { event: 'warning' })[] = [];
    const checkpoint = await latestCheckpoint(this.folder, { warn: (e) => problems.push(e) });
    if (!checkpoint && problems.length > 0)
      throw new AnsatzError(`no checkpoint is usable: ${problems[0].message.replace(/; trying .*/, '')}`, {
        hint: `restore it from a copy, or move ${this.folder.file('checkpoints')} away to start over`,
      });
    for (const problem of problems) this.emit(problem);
    return checkpoint;
  }

  private emit(event: NewRunEvent): void {
    const written = this.log.write(event); // whether or not anyone listens
    this.options.onEvent?.(written);
  }

  private async start(): Promise<void> {
    // With its own tokenizer, a run can be used wherever its data has gone.
    this.data.tokenizer.save(join(this.folder.path, 'tokenizer.json'));
    this.emit({
      event: 'run-start',
      run: this.config.name,
      config: this.folder.hash,
      version: '0.1.0',
      device: this.loaded.device.info().name,
      seed: this.config.seed,
      pid: process.pid,
      host: hostname(),
    });
    const { level, kind } = this.loaded.device.info();
    if (kind === 'cpu' && this.config.precision === 'bf16' && level !== 'avx512')
      this.emit({
        event: 'fallback',
        op: 'matmul',
        wanted: 'bf16 dot products (AVX-512 BF16)',
        used: `f32 products of bf16-rounded operands (${level})`,
        why: `the kernels in use are those for ${level}`,
      });
    const { from, distil } = this.config;
    if (this.quantised) this.onBase(this.quantised);
    else if (from !== undefined) await this.startFrom(from);
    else if (distil?.start === 'layers') await this.startFrom(distil.teacher, sparserLayers);
  }

  /** Weights of another run, and what has none there. */
  private async startFrom(path: string, choose?: typeof sparserLayers): Promise<void> {
    const report = await startFrom(path, this.loaded.model, this.step.params, this.data.tokenizer, choose);
    const { step, copied, grown, stacked, fresh, unused } = report;
    this.emit({
      event: 'started-from',
      run: path,
      step,
      copied,
      grown: [...grown],
      ...(stacked.length > 0 && { stacked: [...stacked] }),
      fresh: [...fresh],
      unused: [...unused],
    });
    for (const message of report.unlike) this.emit({ event: 'warning', message });
  }

  /** The weights of a quantised run are used where they are. */
  private onBase({ note: { run, step }, tokenizer }: QuantisedBase): void {
    if (tokenizer) sameIds(tokenizer, this.data.tokenizer, run);
    const fresh = this.step.params.filter(isTrainable).map((p) => p.path);
    const copied = this.step.params.length - fresh.length;
    this.emit({ event: 'started-from', run, step, copied, grown: [], fresh, unused: [] });
  }

  /** Says what is about to happen; returns the rate that utilisation is measured against. */
  private async plan(): Promise<number> {
    const { config, loaded } = this;
    const tokensPerStep = this.account.positionsPerStep;
    const peak = await measurePeak(loaded.device, config.precision);
    this.emit({
      event: 'plan',
      parameters: this.account.parameters,
      steps: config.steps,
      tokens: config.steps * tokensPerStep,
      tokensPerStep,
      lossTokensPerStep: this.account.lossTokensPerStep,
      flopsPerToken: this.account.modelFlopsPerToken,
      memoryBytes: this.account.memory.total,
      peakFlops: peak,
    });
    return peak;
  }

  private async oneStep(clock: number, peak: number): Promise<number> {
    const { at } = this;
    for (const b of this.batches) this.loader.next(b);
    const result = await this.step.run(at.step, this.batches);
    const now = performance.now();
    const seconds = (now - clock) / 1000;
    const tokens = this.account.positionsPerStep;
    const lossTokens = at.lossTokens + this.batches.reduce((n, b) => n + b.targetCount, 0);
    const lr = this.step.learningRate(at.step);
    const elapsed = at.elapsed + seconds;
    this.at = { step: at.step + 1, tokens: at.tokens + tokens, lossTokens, elapsed, skipsInARow: 0 };
    if (!result.finite) return this.skipped(result.loss, result.gradNorm, at.skipsInARow + 1);
    this.loss = result.loss;
    this.emit({
      event: 'step',
      step: this.at.step,
      tokens: this.at.tokens,
      lossTokens,
      loss: result.loss,
      gradNorm: result.gradNorm,
      lr,
      tokensPerSecond: tokens / seconds,
      mfu: (this.account.modelFlopsPerToken * tokens) / seconds / peak,
      msPerStep: seconds * 1000,
      elapsed: this.at.elapsed,
    });
    return now;
  }

  /** A step that was not finite changed nothing; its batch is kept for whoever looks into it. */
  private async skipped(loss: number, gradNorm: number, consecutive: number): Promise<number> {
    this.at = { ...this.at, skipsInARow: consecutive };
    const folder = join(this.folder.path, 'skipped');
    mkdirSync(folder, { recursive: true });
    const dump = join(folder, `step-${this.at.step}.json`);
    const rows = this.batches.map((b) => ({
      inputs: [...b.inputs],
      targets: [...b.targets],
      samples: [...b.samples],
      segments: [...b.segments],
    }));
    await writeAtomically(dump, [
      Buffer.from(
        JSON.stringify({ step: this.at.step, loss: String(loss), gradNorm: String(gradNorm), batches: rows }),
      ),
    ]);
    const finite = (x: number): number | null => (Number.isFinite(x) ? x : null);
    this.emit({ event: 'skip', step: this.at.step, loss: finite(loss), gradNorm: finite(gradNorm), consecutive, dump });
    if (consecutive >= this.config.stopAfterSkips)
      throw new AnsatzError(
        `${consecutive} steps in a row were not finite: training has diverged at step ${this.at.step}`,
        {
          hint: 'lower optimiser.lr or raise schedule.warmup; the batches are in the run folder under skipped/',
        },
      );
    return performance.now();
  }

  private async evaluate(maxTokens?: number): Promise<HeldOutLoss> {
    const result = await heldOutLoss(this.loaded, this.config, this.data, maxTokens);
    this.emit({ event: 'eval', step: this.at.step, tokens: this.at.tokens, ...result, baselines: this.data.baselines });
    const { model, params } = this.loaded;
    const layers = await measured(model, params);
    if (layers.length > 0)
      this.emit({
        event: 'layers',
        step: this.at.step,
        layers: layers.map((l) => ({ ...l, measures: { ...l.measures } })),
      });
    return result;
  }

  private async save(): Promise<void> {
    const saved = await saveRun(this, this.at);
    this.savedStep = this.at.step;
    this.emit({ event: 'checkpoint', ...saved });
  }

  private async restore(checkpoint: Checkpoint): Promise<void> {
    this.at = await restoreRun(checkpoint, this);
    const { step } = this.at;
    this.savedStep = step;
    await supersedeAfter(this.folder, step);
    this.emit({ event: 'resumed', step, checkpoint: checkpoint.path });
  }
}
