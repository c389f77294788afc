/**
 * Texts as vectors: the mean of the final hidden states of a text (of its encoder, where a model has one), at length 1.
 * Each text is a pass of its own, padded to a power of two: what it gives does not depend on others.
 */
import { AnsatzError } from '../../backend/errors.ts';
import { whyNotRows } from '../../infer/decoding.ts';
import type { OpenRun } from '../../infer/load.ts';
import { forwardContext } from '../../nn/index.ts';
import { type Captured, noGrad, record, type Tensor, zeros } from '../../tensor/index.ts';

interface Pass {
  readonly inputs: Tensor;
  readonly segments: Tensor;
  readonly positions: Tensor;
  readonly step: Captured<{ h: Tensor }>;
}

const SHORTEST = 64;

export class Embedder {
  private readonly opened: OpenRun;
  private readonly passes = new Map<number, Pass>();
  private queue: Promise<unknown> = Promise.resolve();
  private closed = false;

  constructor(opened: OpenRun) {
    this.opened = opened;
  }

  embed(tokens: readonly number[]): Promise<Float32Array> {
    const made = this.queue.then(() => this.pass(tokens));
    this.queue = made.catch(() => {});
    return made;
  }

  async close(): Promise<void> {
    this.closed = true;
    await this.queue;
    for (const { inputs, segments, positions, step } of this.passes.values()) {
      step.dispose();
      for (const t of [step.result.h, inputs, segments, positions]) t.dispose();
    }
    this.passes.clear();
  }

  private async pass(tokens: readonly number[]): Promise<Float32Array> {
    if (this.closed) throw new AnsatzError('the model has been closed');
    const { context, width } = this.opened.model.spec;
    // Parts that do not decode by rows may want the length that they were trained with.
    const padded = whyNotRows(this.opened.model)
      ? context
      : Math.max(SHORTEST, 2 ** Math.ceil(Math.log2(tokens.length)));
    const { inputs, segments, step } = this.program(Math.min(context, padded));
    const n = inputs.shape[1];
    inputs.writeBits(Int32Array.from({ length: n }, (_, k) => tokens[k] ?? 0));
    segments.writeBits(Int32Array.from({ length: n }, (_, k) => (k < tokens.length ? 1 : 0)));
    await step.run();
    const h = (await step.result.h.data()) as Float32Array;
    const mean = new Float64Array(width);
    for (let t = 0; t < tokens.length; t++) for (let k = 0; k < width; k++) mean[k] += h[t * width + k];
    return normalised(mean);
  }

  private program(length: number): Pass {
    const known = this.passes.get(length);
    if (known) return known;
    const { device, model, params, config } = this.opened;
    const ids = (): Tensor => zeros(device, [1, length], 'i32').keep();
    const [inputs, segments, positions] = [ids(), ids(), ids()];
    positions.writeBits(Int32Array.from({ length }, (_, k) => k));
    segments.writeBits(new Int32Array(length).fill(1));
    model.prepare(device);
    const step = record(device, () =>
      noGrad(() => {
        const c = forwardContext({ device, compute: config.precision });
        const batch = { inputs, segments, positions };
        return { h: model.encoder ? model.encoder.encode(params, batch, c) : model.hidden(params, batch, c) };
      }),
    );
    const pass = { inputs, segments, positions, step };
    this.passes.set(length, pass);
    return pass;
  }
}

/** At length 1; a text without a direction stays 0. */
export function normalised(x: ArrayLike<number>): Float32Array {
  let square = 0;
  for (let k = 0; k < x.length; k++) square += x[k] * x[k];
  const scale = square > 0 ? 1 / Math.sqrt(square) : 0;
  return Float32Array.from(x, (v) => v * scale);
}
