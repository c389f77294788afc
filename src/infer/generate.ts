/**
 * Text from a model: the whole window is computed again for every token, as one captured step. It needs nothing from a
 * model but its hidden states, so every layout can generate with it.
 */
import type { Device } from '../backend/device.ts';
import { AnsatzError } from '../backend/errors.ts';
import type { Tokenizer } from '../data/tokenizer/index.ts';
import { StreamDecoder } from '../data/tokenizer/index.ts';
import type { Model } from '../model/model.ts';
import { forwardContext, type ParamTree } from '../nn/index.ts';
import {
  type Captured,
  type Compute,
  capture,
  embedding,
  noGrad,
  reshape,
  type Tensor,
  zeros,
} from '../tensor/index.ts';
import { randomStream, type SamplingOptions, sample } from './sampler.ts';

export interface GenerateOptions extends SamplingOptions {
  maxTokens?: number;
  signal?: AbortSignal;
}

export class Generator {
  private readonly tokenizer: Tokenizer;
  private readonly window: number;
  private readonly inputs: Tensor;
  private readonly last: Tensor;
  private readonly step: Captured<{ logits: Tensor }>;

  constructor(device: Device, model: Model, params: ParamTree, tokenizer: Tokenizer, compute: Compute) {
    this.tokenizer = tokenizer;
    this.window = model.spec.context;
    this.inputs = zeros(device, [1, this.window], 'i32').keep();
    this.last = zeros(device, [1], 'i32').keep();
    model.prepare(device);
    this.step = capture(device, () =>
      noGrad(() => {
        const c = forwardContext({ device, compute });
        const h = model.hidden(params, { inputs: this.inputs, segments: null, positions: null }, c);
        const row = embedding(reshape(h, [this.window, model.spec.width]), this.last);
        return { logits: model.logits(params, row, c) };
      }),
    );
  }

  /** Logits of the token after `ids`; only the last `context` of them count. */
  async next(ids: readonly number[]): Promise<Float32Array> {
    const seen = ids.slice(-this.window);
    const padded = new Int32Array(this.window);
    padded.set(seen);
    this.inputs.writeBits(padded);
    this.last.write([seen.length - 1]);
    await this.step.run();
    return (await this.step.result.logits.data()) as Float32Array;
  }

  /** Pieces of text that continue a prompt, as they come. Ends at the end-of-text token or after maxTokens. */
  async *stream(prompt: string, options: GenerateOptions = {}): AsyncGenerator<string> {
    const { maxTokens = 100, seed = 0 } = options;
    const eot = this.tokenizer.eot;
    const ids = [eot, ...this.tokenizer.encode(prompt, { special: 'text' })];
    if (ids.some((id) => id < 0)) throw new AnsatzError('the prompt does not encode');
    const uniform = randomStream(seed);
    const decoder = new StreamDecoder(this.tokenizer);
    for (let k = 0; k < maxTokens && !options.signal?.aborted; k++) {
      const id = sample(await this.next(ids), options, uniform());
      if (id === eot) break;
      ids.push(id);
      const text = decoder.push(id);
      if (text) yield text;
    }
    const rest = decoder.end();
    if (rest) yield rest;
  }

  async complete(prompt: string, options: GenerateOptions = {}): Promise<string> {
    let text = '';
    for await (const piece of this.stream(prompt, options)) text += piece;
    return text;
  }

  dispose(): void {
    this.step.dispose();
    this.step.result.logits.dispose();
    this.inputs.dispose();
    this.last.dispose();
  }
}
