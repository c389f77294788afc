/** A model that requests can name: its decoder, its tokenizer, how it is talked to. */
import { createHash } from 'node:crypto';
import { AnsatzError } from '../../backend/errors.ts';
import type { Tokenizer } from '../../data/tokenizer/index.ts';
import type { OpenDecoding } from '../../infer/decoding.ts';
import { chatFiles } from '../../infer/formats/chat-files.ts';
import type { OpenRun } from '../../infer/load.ts';
import { unusedOf } from '../../infer/prompt.ts';
import type { Vocabulary } from '../../objectives/index.ts';
import { vocabularyOf } from '../../train/objective.ts';
import { closeInspector } from '../inspect.ts';
import { type ChatTemplate, chatTemplate } from './chat-template.ts';
import { Embedder } from './embedder.ts';
import { Grammars } from './grammars.ts';

export interface ServingOptions {
  /** Bytes for the cache of each model. */
  readonly cacheBytes?: number;
  /** Sequences that run at a time. */
  readonly sequences: number;
  /** Requests that may wait for a place; more are turned away. */
  readonly queue: number;
  /** Guess from the text itself. */
  readonly lookup: boolean;
}

export interface ModelInfo {
  readonly name: string;
  /** Seconds since 1970. */
  readonly created: number;
  readonly owner: string;
  /** Whether the API made it, and may delete it. */
  readonly tuned: boolean;
  /** It can be named, and is not listed. */
  readonly hidden?: boolean;
}

/** What a model computes with. */
export interface Machinery {
  readonly decoding: OpenDecoding;
  /** Bytes of the weights that are its own. */
  readonly bytes: number;
  /** The model whose weights it shares; null: it has all of them itself. */
  readonly base: string | null;
  /** Frees the weights, once nothing computes with them. */
  dispose(): void;
}

export class ServedModel {
  readonly info: ModelInfo;
  readonly opened: OpenRun;
  readonly tokenizer: Tokenizer;
  readonly vocabulary: Vocabulary;
  readonly template: ChatTemplate;
  readonly decoding: OpenDecoding;
  readonly options: ServingOptions;
  /** Changes with the weights. */
  readonly fingerprint: string;
  /** Ids that are never picked: the model has them, the tokenizer does not. */
  readonly unused: readonly number[];
  /** What ends a text besides the tokenizer's own token, as the files that came with the model say. */
  readonly ends: readonly number[];
  readonly grammars: Grammars;
  private readonly machinery: Machinery;
  private embedder: Embedder | null = null;

  constructor(info: ModelInfo, opened: OpenRun, options: ServingOptions, machinery: Machinery) {
    [this.info, this.opened, this.options, this.machinery] = [info, opened, options, machinery];
    this.decoding = machinery.decoding;
    const { tokenizer, model, run, checkpoint } = opened;
    this.tokenizer = tokenizer;
    this.vocabulary = vocabularyOf(tokenizer);
    this.template = chatTemplate(tokenizer, run.path);
    this.ends = chatFiles(run.path).ends.filter((id) => id < tokenizer.vocabSize && id !== tokenizer.eot);
    this.grammars = new Grammars(tokenizer, model.spec.vocab, [...new Set([...this.template.stop, ...this.ends])]);
    this.unused = unusedOf(tokenizer, model.spec.vocab);
    this.fingerprint = `fp_${createHash('sha256').update(`${run.hash}:${checkpoint.step}`).digest('hex').slice(0, 10)}`;
  }

  /** The model whose weights it shares. */
  get base(): string | null {
    return this.machinery.base;
  }

  /** Bytes of the weights that are its own. */
  get weightBytes(): number {
    return this.machinery.bytes;
  }

  get context(): number {
    return this.opened.model.spec.context;
  }

  /** Whether an encoder reads something before the text begins. */
  get reads(): boolean {
    return this.opened.model.encoder !== undefined;
  }

  /** Normalised means of hidden states. */
  embed(tokens: readonly number[]): Promise<Float32Array> {
    this.embedder ??= new Embedder(this.opened);
    return this.embedder.embed(tokens);
  }

  async close(): Promise<void> {
    await this.decoding.close();
    await this.embedder?.close();
    await closeInspector(this);
    this.machinery.dispose();
  }
}

export function sameTokens(draft: Tokenizer, tokenizer: Tokenizer, name: string): void {
  const same =
    draft.vocabSize === tokenizer.vocabSize &&
    Array.from({ length: draft.vocabSize }, (_, id) => draft.idToToken(id) === tokenizer.idToToken(id)).every(Boolean);
  if (!same)
    throw new AnsatzError(`the draft model has other tokens than ${name}`, {
      hint: 'train both with the same data folder, or use --lookup',
    });
}
