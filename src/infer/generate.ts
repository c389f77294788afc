/**
 * Text from a model: the whole window is computed again for every token, as one captured step. It needs nothing from a
 * model but its hidden states, so every layout can generate with it.
 */
import type { Device } from '../backend/device.ts';
import { AnsatzError } from '../backend/errors.ts';
import type { Tokenizer } from '../data/tokenizer/index.ts';
import { StreamDecoder } from '../data/tokenizer/index.ts';
import type { Memory, Model } from '../model/model.ts';
import { type ForwardContext, forwardContext, type ParamTree } from '../nn/index.ts';
import type { Objective, Prompt, PromptOptions, Vocabulary } from '../objectives/index.ts';
import {
  type Captured,
  type Compute,
  capture,
  embedding,
  noGrad,
  ones,
  reshape,
  type Tensor,
  zeros,
} from '../tensor/index.ts';
import { vocabularyOf } from '../train/objective.ts';
import { randomStream, type SamplingOptions, sample } from './sampler.ts';

export interface GenerateOptions extends SamplingOptions {
  maxTokens?: number;
  signal?: AbortSignal;
  /** Text that is given: an encoder reads it, or it comes before the prompt. The prompt is then what follows so far. */
  context?: string;
  /** Mode of a model that was trained with a mixture of denoisers. */
  mode?: string;
  /** Names of special tokens in prompt and context stand for those tokens (holes, control tokens), not for text. */
  specials?: boolean;
}

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

export class Generator {
  private readonly tokenizer: Tokenizer;
  private readonly window: number;
  private readonly inputs: Tensor;
  private readonly last: Tensor;
  /** Up to where each token sees ahead; null for models that never do. */
  private readonly visible: Tensor | null;
  private readonly ones: Tensor | null;
  private readonly encoder: EncoderWindow | null;
  private readonly objective: Objective | undefined;
  private readonly vocabulary: Vocabulary;
  private readonly step: Captured<{ logits: Tensor }>;

  /** `objective`: what the model was trained with; it says how a prompt is put. */
  constructor(
    device: Device,
    model: Model,
    params: ParamTree,
    tokenizer: Tokenizer,
    compute: Compute,
    objective?: Objective,
  ) {
    this.tokenizer = tokenizer;
    this.objective = objective;
    this.vocabulary = vocabularyOf(tokenizer);
    this.window = model.spec.context;
    this.inputs = zeros(device, [1, this.window], 'i32').keep();
    this.last = zeros(device, [1], 'i32').keep();
    model.prepare(device);
    const context = (): ForwardContext => forwardContext({ device, compute });
    this.visible = objective?.shape.visible ? zeros(device, [1, this.window], 'i32').keep() : null;
    this.encoder = model.encoder ? new EncoderWindow(device, model, params, context) : null;
    this.ones = this.encoder ? ones(device, [1, this.window], 'i32').keep() : null;
    const { inputs, visible, encoder } = this;
    this.step = capture(device, () =>
      noGrad(() => {
        const c = context();
        const batch = { inputs, segments: this.ones, positions: null, visible };
        const h = encoder
          ? model.encoder!.decode(params, batch, encoder.memory, encoder.segments, c)
          : model.hidden(params, batch, c);
        const row = embedding(reshape(h, [this.window, model.spec.width]), this.last);
        return { logits: model.logits(params, row, c) };
      }),
    );
  }

  /** Logits of the token after `ids`; only the last `context` of them count. Those up to `given` see each other. */
  async next(ids: readonly number[], given = -1): Promise<Float32Array> {
    const seen = ids.slice(-this.window);
    const padded = new Int32Array(this.window);
    padded.set(seen);
    this.inputs.writeBits(padded);
    const ahead = given - (ids.length - seen.length);
    this.visible?.writeBits(new Int32Array(this.window).fill(-1).fill(ahead, 0, Math.max(0, ahead + 1)));
    this.last.write([seen.length - 1]);
    await this.step.run();
    return (await this.step.result.logits.data()) as Float32Array;
  }

  /** Pieces of text that continue a prompt, as they come. Ends at the end-of-text token or after maxTokens. */
  async *stream(prompt: string, options: GenerateOptions = {}): AsyncGenerator<string> {
    const { maxTokens = 100, seed = 0 } = options;
    const eot = this.tokenizer.eot;
    const { encoder, decoder: ids, visible, stop, never = [] } = this.promptOf(prompt, options);
    if (ids.some((id) => id < 0)) throw new AnsatzError('the prompt does not encode');
    if (this.encoder) await this.encoder.read(encoder ?? []);
    const uniform = randomStream(seed);
    const decoder = new StreamDecoder(this.tokenizer);
    for (let k = 0; k < maxTokens && !options.signal?.aborted; k++) {
      const logits = await this.next(ids, visible);
      for (const id of never) logits[id] = Number.NEGATIVE_INFINITY;
      const id = sample(logits, options, uniform());
      if (id === eot || stop.includes(id)) break;
      ids.push(id);
      const text = decoder.push(id);
      if (text) yield text;
    }
    const rest = decoder.end();
    if (rest) yield rest;
  }

  /** A prompt as the model's objective puts it; what an encoder has no room for goes first. */
  private promptOf(prompt: string, { mode, context, specials }: GenerateOptions): Prompt & { decoder: number[] } {
    const special = specials ? 'token' : 'text';
    const encode = (text: string): number[] => [...this.tokenizer.encode(text, { special })];
    const [text, before] = [encode(prompt), context === undefined ? undefined : encode(context)];
    const put = (own: number[], given: number[] | undefined): Prompt => {
      const options: PromptOptions = { mode, context: given };
      const plain = { decoder: [this.vocabulary.eot, ...(given ?? []), ...own], stop: [] };
      return this.objective?.prompt?.(this.vocabulary, own, options) ?? plain;
    };
    let made = put(text, before);
    const excess = (made.encoder?.length ?? 0) - this.window;
    if (excess > 0) made = before ? put(text, before.slice(excess)) : put(text.slice(excess), undefined);
    return { ...made, decoder: [...made.decoder] };
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
    this.visible?.dispose();
    this.ones?.dispose();
    this.encoder?.dispose();
  }
}
