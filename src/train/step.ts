/**
 * The captured steps of a run: forward, backward and update as programs that replay off the JavaScript thread.
 *
 * One micro-batch a step: a single program. Several: `micro` adds gradients up, `finish` applies and clears them.
 */
import type { Device } from '../backend/device.ts';
import type { BatchExtras, TokenBatch } from '../data/types.ts';
import type { Batch, EncoderBatch, Model, VisiblePairs } from '../model/model.ts';
import { afterStep, declared, flatten, forwardContext, isTrainable, type ParamTree } from '../nn/index.ts';
import {
  accumulate,
  assign,
  type Captured,
  capture,
  clipScale,
  concat,
  gradients,
  noGrad,
  RandomState,
  sumsq,
  Tensor,
  zeros,
} from '../tensor/index.ts';
import type { TrainConfig } from './config.ts';
import type { LossOf } from './distil.ts';
import { objectiveOf } from './objective.ts';
import { makeOptimiser, type Optimiser, type TrainedParam } from './optimisers/index.ts';
import { scheduleFactor } from './schedule.ts';

/** Parameters (and saved state) in the order that the model declares them, with their tensors. */
export function namedTensors(model: Model, params: ParamTree): TrainedParam[] {
  const tensors = new Map(flatten(params).map(({ path, tensor }) => [path, tensor]));
  return declared(model).map((p) => ({ ...p, tensor: tensors.get(p.path)! }));
}

/** A batch's place on the device, written anew before each replay. */
export class DeviceBatch implements Batch {
  readonly inputs: Tensor;
  readonly targets: Tensor;
  readonly segments: Tensor | null;
  readonly positions: Tensor | null;
  readonly weights: Tensor;
  readonly visible: Tensor | null;
  readonly keep: Tensor | null;
  readonly encoder: EncoderBatch | null;
  readonly pairs?: VisiblePairs;

  constructor(
    device: Device,
    rows: number,
    length: number,
    withSegments: boolean,
    extras: BatchExtras & { readonly pairs?: VisiblePairs } = {},
  ) {
    const ids = (n = length): Tensor => zeros(device, [rows, n], 'i32').keep();
    this.inputs = ids();
    this.targets = ids();
    this.segments = withSegments ? ids() : null;
    this.positions = withSegments ? ids() : null;
    this.weights = zeros(device, [rows, length]).keep();
    this.visible = extras.visible ? ids() : null;
    this.keep = extras.keep ? ids() : null;
    const n = extras.encoder;
    this.encoder = n ? { inputs: ids(n), segments: ids(n), positions: ids(n) } : null;
    if (extras.pairs) this.pairs = extras.pairs;
  }

  /** The batch of a training step of a run: what its objective's rows hold. `length` is that of its rows of text. */
  static forTraining(device: Device, config: TrainConfig, length: number): DeviceBatch {
    const { shape } = objectiveOf(config, length);
    const segments = shape.segmented || !config.data.crossDocuments;
    return new DeviceBatch(device, config.batch, shape.length, segments, shape);
  }

  /** Copies a batch in; every counted target weighs 1 / `counted`. */
  write(batch: TokenBatch, counted: number): void {
    this.inputs.writeBits(batch.inputs);
    this.targets.writeBits(batch.targets);
    this.segments?.writeBits(batch.segments);
    this.positions?.writeBits(batch.positions);
    this.weights.writeBits(new Float32Array(batch.targets.length).fill(counted > 0 ? 1 / counted : 0));
    const { visible, keep, encoder } = this;
    visible?.writeBits(given(batch.visible, 'visible'));
    keep?.writeBits(given(batch.keep, 'keep'));
    if (!encoder) return;
    const rows = given(batch.encoder, 'encoder');
    encoder.inputs.writeBits(rows.inputs);
    encoder.segments.writeBits(rows.segments);
    encoder.positions.writeBits(rows.positions);
  }

  dispose(): void {
    const { inputs, targets, segments, positions, weights, visible, keep, encoder } = this;
    for (const t of [inputs, targets, segments, positions, weights, visible, keep]) t?.dispose();
    for (const t of encoder ? [encoder.inputs, encoder.segments, encoder.positions] : []) t.dispose();
  }
}

function given<T>(part: T | undefined, name: string): T {
  if (part === undefined) throw new Error(`a batch without '${name}', which its objective declares`);
  return part;
}

/** What one optimiser step reports. */
export interface StepResult {
  readonly loss: number;
  readonly gradNorm: number;
  /** False when the gradient was not finite: parameters and state were left as they were. */
  readonly finite: boolean;
}

export class TrainStep {
  readonly optimiser: Optimiser;
  readonly params: TrainedParam[];
  private readonly config: TrainConfig;
  private readonly batch: DeviceBatch;
  private readonly scalars: Tensor;
  private readonly random: RandomState;
  /** Share of the run that is done, f32 [1]: for layers whose behaviour follows a schedule. */
  private readonly progress: Tensor;
  private readonly micro: Captured<{ total: Tensor }>;
  private readonly finish: Captured<null> | null;
  /** Gradient sums over micro-batches; none when there is only one. */
  private readonly sums: Tensor[];

  /** `lossOf`: what is minimised, when it is not the model's own loss. */
  constructor(
    device: Device,
    model: Model,
    params: ParamTree,
    config: TrainConfig,
    length: number,
    lossOf: LossOf = model.loss,
  ) {
    this.config = config;
    this.params = namedTensors(model, params);
    const trained = this.params.filter(isTrainable);
    this.optimiser = makeOptimiser(config.optimiser, trained, device);
    this.batch = DeviceBatch.forTraining(device, config, length);
    this.scalars = Tensor.from(device, [0, 1, 1, 1, 1, 0, 0, 0], [8]).keep();
    this.random = new RandomState(device, config.seed);
    this.progress = zeros(device, [1]).keep();
    model.prepare(device);
    const tensors = trained.map((p) => p.tensor);
    const update = (grads: readonly Tensor[]): void => {
      clipScale(this.scalars, concat(grads.map(sumsq), 0), config.clip);
      this.optimiser.update(grads, this.scalars);
      afterStep(model, params);
    };
    const forward = (): { total: Tensor; grads: Tensor[] } => {
      const c = forwardContext({
        device,
        compute: config.precision,
        training: true,
        random: this.random,
        progress: this.progress,
        share: 1 / config.accumulate,
      });
      const { total } = lossOf(params, this.batch, c);
      return { total, grads: gradients(total, tensors) };
    };
    this.sums = config.accumulate === 1 ? [] : tensors.map((t) => zeros(device, t.shape).keep());
    if (config.accumulate === 1) {
      this.micro = capture(device, () => {
        const { total, grads } = forward();
        update(grads);
        return { total };
      });
      this.finish = null;
    } else {
      const { sums } = this;
      this.micro = capture(device, () => {
        const { total, grads } = forward();
        for (let k = 0; k < grads.length; k++) accumulate(sums[k], grads[k]);
        return { total };
      });
      this.finish = capture(device, () => {
        update(sums);
        for (const s of sums) assign(s, 0);
        return null;
      });
    }
    this.reset();
  }

  /** Wipes what steps at learning rate 0 left behind: optimiser state, and state that modules update themselves. */
  private reset(): void {
    this.optimiser.reset();
    for (const { spec, tensor } of this.params)
      if (spec.trainable === false && spec.init.kind === 'constant')
        tensor.write(new Float32Array(tensor.size).fill(spec.init.value));
  }

  /** The programs and how often each runs in a step: for profiles and cost accounting. */
  get programs(): { program: Captured<unknown>['program']; times: number }[] {
    const list = [{ program: this.micro.program, times: this.config.accumulate }];
    if (this.finish) list.push({ program: this.finish.program, times: 1 });
    return list;
  }

  /** Optimiser step `step`, counted from 0, on the micro-batches of one step. */
  async run(step: number, batches: readonly TokenBatch[]): Promise<StepResult> {
    const { config } = this;
    this.writeScalars(step);
    const counted = batches.reduce((n, b) => n + b.targetCount, 0);
    let loss = 0;
    for (let k = 0; k < batches.length; k++) {
      this.batch.write(batches[k], counted);
      this.random.setStep(step * config.accumulate + k);
      await this.micro.run();
      loss += (await this.micro.result.total.data())[0];
    }
    if (this.finish) await this.finish.run();
    const scalars = await this.scalars.data();
    return { loss, gradNorm: scalars[5], finite: scalars[4] === 1 && Number.isFinite(loss) };
  }

  /** Milliseconds of a step on this machine, on a given batch, leaving parameters and optimiser untouched. */
  async measure(batches: readonly TokenBatch[], seconds: number): Promise<number> {
    this.scalars.write([0, 1, 1, 1, 1, 0, 0, 0]);
    this.batch.write(batches[0], batches[0].targetCount);
    const times: number[] = [];
    for (const end = performance.now() + seconds * 1000; performance.now() < end || times.length < 3; ) {
      const start = performance.now();
      for (let k = 0; k < this.config.accumulate; k++) await this.micro.run();
      if (this.finish) await this.finish.run();
      times.push(performance.now() - start);
    }
    this.reset();
    times.sort((a, b) => a - b);
    return times[Math.floor(times.length / 2)];
  }

  /** Frees everything but the parameters. */
  dispose(): void {
    this.micro.dispose();
    this.finish?.dispose();
    this.batch.dispose();
    for (const t of [
      this.micro.result.total,
      this.scalars,
      this.random.tensor,
      this.progress,
      ...this.sums,
      ...this.optimiser.state.values(),
    ])
      t.dispose();
  }

  learningRate(step: number): number {
    return this.config.optimiser.lr * scheduleFactor(this.config.schedule, step, this.config.steps);
  }

  private writeScalars(step: number): void {
    const [c1, c2] = this.optimiser.corrections(step + 1);
    const momentum = this.optimiser.momentum?.(step + 1) ?? 0;
    this.scalars.write([this.learningRate(step), 1, c1, c2, 1, 0, 0, momentum]);
    this.progress.write([step / this.config.steps]);
  }
}

/** Losses of batches without training: for held-out text. */
export class EvalStep {
  private readonly batch: DeviceBatch;
  private readonly captured: Captured<{ rows: Tensor }>;

  constructor(
    device: Device,
    model: Model,
    params: ParamTree,
    config: Pick<TrainConfig, 'batch' | 'precision'> & { data: Pick<TrainConfig['data'], 'crossDocuments'> },
    length: number,
    /** Positions of an encoder's rows, for models that have one. */
    encoder = 0,
    batch = new DeviceBatch(device, config.batch, length, encoder > 0 || !config.data.crossDocuments, { encoder }),
  ) {
    this.batch = batch;
    model.prepare(device);
    this.captured = capture(device, () =>
      noGrad(() => ({
        rows: model.loss(params, this.batch, forwardContext({ device, compute: config.precision })).rows,
      })),
    );
  }

  /** Loss of every position in nats, row after row; positions without a target count nothing. */
  async rows(batch: TokenBatch): Promise<Float32Array> {
    this.batch.write(batch, 1);
    await this.captured.run();
    return (await this.captured.result.rows.data()) as Float32Array;
  }

  /** Summed nats and number of targets. */
  async run(batch: TokenBatch): Promise<{ nats: number; targets: number }> {
    const rows = await this.rows(batch);
    let [nats, targets] = [0, 0];
    for (let k = 0; k < rows.length; k++) {
      if (batch.targets[k] < 0) continue;
      nats += rows[k];
      targets++;
    }
    return { nats, targets };
  }

  dispose(): void {
    this.captured.dispose();
    this.captured.result.rows.dispose();
    this.batch.dispose();
  }
}
