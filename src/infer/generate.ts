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
import { Automaton, Grammar, type JsonSchema, schemaGrammar, TokenTable } from './grammar/index.ts';
import { type PromptText, putPrompt, unusedOf } from './prompt.ts';
import { Sampler, type SamplingOptions } from './sampling/index.ts';
import { complete } from './text/completion.ts';
import { StopStrings } from './text/stops.ts';

export interface GenerateOptions extends SamplingOptions, PromptText {
  maxTokens?: number;
  seed?: number;
  /** Tokens that end the text, beside the end of texts. */
  ends?: readonly number[];
  /** Texts that end it; they are not part of it. */
  stop?: readonly string[];
  /** What is written is JSON that is valid under this schema, or an error. */
  schema?: JsonSchema;
  signal?: AbortSignal;
}

export class Generator {
  private readonly tokenizer: Tokenizer;
  private readonly window: number;
  private readonly objective: Objective | undefined;
  private readonly vocabulary: Vocabulary;
  private readonly decoding: OpenDecoding;
  private readonly vocab: number;
  private table: TokenTable | null = null;

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
    this.vocab = model.spec.vocab;
    const ahead = objective?.shape.visible ?? false;
    this.decoding = openDecoding(device, model, params, { compute, ahead, sequences: 1, ...options });
  }

  /**
   * Pieces of text that continue a prompt, as they come. Ends at the end-of-text token or after maxTokens.
   * @throws AnsatzError when an option is out of range, a schema cannot be promised, or its text is not whole.
   */
  async *stream(prompt: string, options: GenerateOptions = {}): AsyncGenerator<string> {
    const { maxTokens = 100, seed = 0, signal } = options;
    const { tokenizer, vocabulary, window, objective } = this;
    const put = putPrompt(tokenizer, vocabulary, objective, window, prompt, options);
    const { encoder, visible = -1 } = put;
    const never = [...(put.never ?? []), ...(options.never ?? []), ...unusedOf(tokenizer, this.vocab)];
    const ends = [tokenizer.eot, ...put.stop, ...(options.ends ?? [])];
    const stops = new StopStrings(options.stop ?? []);
    const mask = options.schema === undefined ? null : this.grammar(options.schema, ends).begin();
    if (put.decoder.some((id) => id < 0)) throw new AnsatzError('the prompt does not encode');
    const picker = new Sampler({ ...options, seed, never, mask }, put.decoder);
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
        stop: ends,
        ahead: Math.max(0, ahead - cut),
        signal,
      });
      let next = await pieces.next();
      for (; !next.done; next = await pieces.next()) {
        tokens = [...tokens, ...next.value.picks.map((p) => p.token)];
        left -= next.value.picks.length;
        const text = stops.push(next.value.text);
        if (text) yield text;
        if (stops.found !== null) break;
      }
      if (!next.done) await pieces.return(next.value as never);
      if (!next.done || next.value.reason !== 'length') break;
    }
    const rest = stops.end();
    if (rest) yield rest;
    if (mask && !mask.complete && !signal?.aborted)
      throw new AnsatzError(`the JSON was not complete after ${maxTokens - left} tokens`, {
        hint: left > 0 ? 'use no --stop that its texts may have' : `raise --max-tokens above ${maxTokens}`,
      });
  }

  private grammar(schema: JsonSchema, ends: readonly number[]): Grammar {
    this.table ??= new TokenTable(this.tokenizer, { vocab: this.vocab, ends });
    return new Grammar(new Automaton(schemaGrammar(schema)), this.table);
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
