/** Text that continues a prompt, from any model. */
import type { Device } from '../backend/device.ts';
import { AnsatzError } from '../backend/errors.ts';
import type { Tokenizer } from '../data/tokenizer/index.ts';
import type { Model } from '../model/model.ts';
import type { ParamTree } from '../nn/index.ts';
import type { Objective, Vocabulary } from '../objectives/index.ts';
import type { Compute } from '../tensor/index.ts';
import { vocabularyOf } from '../train/objective.ts';
import { type DecodingOptions, type OpenDecoding, openDecoding } from './decoding.ts';
import { type PromptText, putPrompt } from './prompt.ts';
import { Sampler, type SamplingOptions } from './sampling/index.ts';
import { complete } from './text/completion.ts';

export interface GenerateOptions extends SamplingOptions, PromptText {
  maxTokens?: number;
  seed?: number;
  signal?: AbortSignal;
}

export class Generator {
  private readonly tokenizer: Tokenizer;
  private readonly window: number;
  private readonly objective: Objective | undefined;
  private readonly vocabulary: Vocabulary;
  private readonly decoding: OpenDecoding;

  /** `objective`: what the model was trained with; it says how a prompt is put. */
  constructor(
    device: Device,
    model: Model,
    params: ParamTree,
    tokenizer: Tokenizer,
    compute: Compute,
    objective?: Objective,
    options: Partial<DecodingOptions> = {},
  ) {
    this.tokenizer = tokenizer;
    this.objective = objective;
    this.vocabulary = vocabularyOf(tokenizer);
    this.window = model.spec.context;
    const ahead = objective?.shape.visible ?? false;
    this.decoding = openDecoding(device, model, params, { compute, ahead, sequences: 1, ...options });
  }

  /** Pieces of text that continue a prompt, as they come. Ends at the end-of-text token or after maxTokens. */
  async *stream(prompt: string, options: GenerateOptions = {}): AsyncGenerator<string> {
    const { maxTokens = 100, seed = 0, signal } = options;
    const { tokenizer, vocabulary, window, objective } = this;
    const put = putPrompt(tokenizer, vocabulary, objective, window, prompt, options);
    const { encoder, visible = -1, stop, never } = put;
    if (put.decoder.some((id) => id < 0)) throw new AnsatzError('the prompt does not encode');
    const picker = new Sampler({ ...options, seed, never }, put.decoder);
    let left = maxTokens;
    let tokens = put.decoder;
    // A text that outgrows the context goes on from its end, with room for what is wanted, or for half a context.
    for (let ahead = visible + 1; left > 0 && !signal?.aborted; ahead = 0) {
      const room = Math.max(1, Math.min(left, Math.floor(window / 2)));
      const cut = tokens.length < window ? 0 : tokens.length - Math.max(1, window - room);
      tokens = tokens.slice(cut);
      const pieces = complete(this.decoding, tokenizer, {
        prompt: tokens,
        encoder: encoder ? [...encoder] : undefined,
        maxTokens: left,
        picker: { pick: (logits) => picker.pick(logits) },
        stop: [tokenizer.eot, ...stop],
        ahead: Math.max(0, ahead - cut),
        signal,
      });
      let next = await pieces.next();
      for (; !next.done; next = await pieces.next()) {
        tokens = [...tokens, ...next.value.picks.map((p) => p.token)];
        left -= next.value.picks.length;
        if (next.value.text) yield next.value.text;
      }
      if (next.value.reason !== 'length') return;
    }
  }

  async complete(prompt: string, options: GenerateOptions = {}): Promise<string> {
    let text = '';
    for await (const piece of this.stream(prompt, options)) text += piece;
    return text;
  }

  /** Frees everything but the model. */
  dispose(): Promise<void> {
    return this.decoding.close();
  }
}
