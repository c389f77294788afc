/**
 * Logits by computing the whole window anew for every token, as one captured step. It needs nothing from a model but its
 * hidden states, so every spec can be decoded with it; and it is what decoding by rows is tested against.
 */
import type { Device } from '../backend/device.ts';
import type { Memory, Model } from '../model/model.ts';
import { type ForwardContext, forwardContext, type ParamTree } from '../nn/index.ts';
import {
  type Captured,
  type Compute,
  capture,
  embedding,
  noGrad,
  ones,
  record,
  reshape,
  type Tensor,
  zeros,
} from '../tensor/index.ts';

/** What the encoder has read: computed once a text, read at every step. */
class EncoderWindow {
  readonly memory: Memory;
  private readonly window: number;
  private readonly inputs: Tensor;
  private readonly positions: Tensor;
  /** 1 where there is text, 0 where there is none. */
  readonly segments: Tensor;
  private readonly step: Captured<{ memory: Memory }>;

  constructor(device: Device, model: Model, params: ParamTree, c: () => ForwardContext) {
    this.window = model.spec.context;
    const ids = (): Tensor => zeros(device, [1, this.window], 'i32').keep();
    [this.inputs, this.segments, this.positions] = [ids(), ids(), ids()];
    this.positions.writeBits(Int32Array.from({ length: this.window }, (_, k) => k));
    const { inputs, segments, positions } = this;
    // Computed at once: who never reads a text sees the states of none.
    this.step = capture(device, () =>
      noGrad(() => {
        const context = c();
        const states = model.encoder!.encode(params, { inputs, segments, positions }, context);
        return { memory: model.encoder!.crossKeyValues(params, states, context) };
      }),
    );
    this.memory = this.step.result.memory;
  }

  async read(ids: readonly number[]): Promise<void> {
    const [tokens, used] = [new Int32Array(this.window), new Int32Array(this.window)];
    tokens.set(ids);
    used.fill(1, 0, ids.length);
    this.inputs.writeBits(tokens);
    this.segments.writeBits(used);
    await this.step.run();
  }

  dispose(): void {
    this.step.dispose();
    for (const t of this.memory.flatMap((m) => (m ? [m.key, m.value] : []))) t.dispose();
    for (const t of [this.inputs, this.segments, this.positions]) t.dispose();
  }
}

export class Window {
  private readonly length: number;
  private readonly inputs: Tensor;
  private readonly last: Tensor;
  /** Up to where each token sees ahead; null for models that never do. */
  private readonly visible: Tensor | null;
  private readonly ones: Tensor | null;
  private readonly encoder: EncoderWindow | null;
  private readonly step: Captured<{ logits: Tensor }>;

  /** `ahead`: whether texts may begin with tokens that see each other. */
  constructor(device: Device, model: Model, params: ParamTree, compute: Compute, ahead: boolean) {
    this.length = model.spec.context;
    this.inputs = zeros(device, [1, this.length], 'i32').keep();
    this.last = zeros(device, [1], 'i32').keep();
    model.prepare(device);
    const context = (): ForwardContext => forwardContext({ device, compute });
    this.visible = ahead ? zeros(device, [1, this.length], 'i32').keep() : null;
    this.encoder = model.encoder ? new EncoderWindow(device, model, params, context) : null;
    this.ones = this.encoder ? ones(device, [1, this.length], 'i32').keep() : null;
    const { inputs, visible, encoder } = this;
    this.step = record(device, () =>
      noGrad(() => {
        const c = context();
        const batch = { inputs, segments: this.ones, positions: null, visible };
        const h = encoder
          ? model.encoder!.decode(params, batch, encoder.memory, encoder.segments, c)
          : model.hidden(params, batch, c);
        const row = embedding(reshape(h, [this.length, h.shape[h.rank - 1]]), this.last);
        return { logits: model.logits(params, row, c) };
      }),
    );
  }

  /** Gives the encoder a text; nothing happens in models without one. */
  async read(ids: readonly number[]): Promise<void> {
    await this.encoder?.read(ids);
  }

  /** Logits of the token after `ids`; only the last `context` of them count. Those up to `given` see each other. */
  async next(ids: readonly number[], given = -1): Promise<Float32Array> {
    const seen = ids.slice(-this.length);
    const padded = new Int32Array(this.length);
    padded.set(seen);
    this.inputs.writeBits(padded);
    const ahead = given - (ids.length - seen.length);
    this.visible?.writeBits(new Int32Array(this.length).fill(-1).fill(ahead, 0, Math.max(0, ahead + 1)));
    this.last.write([seen.length - 1]);
    await this.step.run();
    return (await this.step.result.logits.data()) as Float32Array;
  }

  dispose(): void {
    this.step.dispose();
    this.step.result.logits.dispose();
    this.inputs.dispose();
    this.last.dispose();
    this.visible?.dispose();
    this.ones?.dispose();
    this.encoder?.dispose();
  }
}
