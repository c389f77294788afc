/** A model that requests can name: its decoder, its tokenizer, how it is talked to. */
import { createHash } from 'node:crypto';
import { AnsatzError } from '../../backend/errors.ts';
import type { Tokenizer } from '../../data/tokenizer/index.ts';
import { cacheSizes, type DecodingOptions, type OpenDecoding, openDecoding, whyNotRows } from '../../infer/decoding.ts';
import {
  Automaton,
  Grammar,
  type JsonSchema,
  objectGrammar,
  schemaGrammar,
  TokenTable,
} from '../../infer/grammar/index.ts';
import type { OpenRun } from '../../infer/load.ts';
import { disposeTree } from '../../nn/index.ts';
import type { Vocabulary } from '../../objectives/index.ts';
import { vocabularyOf } from '../../train/objective.ts';
import type { ResponseFormat } from '../api/schema.ts';
import { badRequest } from '../http/errors.ts';
import { closeInspector } from '../inspect.ts';
import { type ChatTemplate, chatTemplate } from './chat-template.ts';
import { Embedder } from './embedder.ts';

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

/** Tokens drafted at a time. */
const DRAFTS = 6;
/** A cache that is not given a size holds all sequences at full length, up to this. */
const USUAL_CACHE = 1 << 30;
/** Grammars kept, and states after which one is made anew. */
const GRAMMARS = 32;
const MAX_STATES = 50_000;
const MAX_SCHEMA = 64 << 10;

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
  private readonly grammars = new Map<string, Grammar>();
  private table: TokenTable | null = null;
  private embedder: Embedder | null = null;

  constructor(info: ModelInfo, opened: OpenRun, options: ServingOptions, draft?: OpenRun) {
    [this.info, this.opened, this.options] = [info, opened, options];
    const { tokenizer, device, model, params, config, run, checkpoint } = opened;
    this.tokenizer = tokenizer;
    this.vocabulary = vocabularyOf(tokenizer);
    this.template = chatTemplate(tokenizer);
    this.unused = Array.from({ length: model.spec.vocab - tokenizer.vocabSize }, (_, k) => tokenizer.vocabSize + k);
    this.fingerprint = `fp_${createHash('sha256').update(`${run.hash}:${checkpoint.step}`).digest('hex').slice(0, 10)}`;
    if (draft) sameTokens(draft.tokenizer, tokenizer, info.name);
    const decoding: DecodingOptions = {
      compute: config.precision,
      ahead: opened.objective.shape.visible,
      sequences: options.sequences,
      cacheBytes: options.cacheBytes ?? this.usualCache(),
      drafts: DRAFTS,
      ...(draft && { draft: { model: draft.model, params: draft.params, compute: draft.config.precision } }),
    };
    this.decoding = openDecoding(device, model, params, decoding);
  }

  get context(): number {
    return this.opened.model.spec.context;
  }

  /** Whether an encoder reads something before the text begins. */
  get reads(): boolean {
    return this.opened.model.encoder !== undefined;
  }

  /** The grammar of an answer; null when any text will do. */
  grammar(format: ResponseFormat | undefined): Grammar | null {
    if (!format || format.type === 'text') return null;
    const schema: JsonSchema | null = format.type === 'json_schema' ? (format.json_schema.schema ?? true) : null;
    const key = JSON.stringify(schema);
    if (key.length > MAX_SCHEMA)
      throw badRequest(`The schema is longer than ${MAX_SCHEMA} characters.`, 'response_format');
    let grammar = this.grammars.get(key);
    if (!grammar || grammar.automaton.size > MAX_STATES) {
      grammar = this.compile(schema);
      if (this.grammars.size >= GRAMMARS) this.grammars.delete(this.grammars.keys().next().value!);
    }
    this.grammars.delete(key);
    this.grammars.set(key, grammar);
    return grammar;
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
    disposeTree(this.opened.params);
  }

  private compile(schema: JsonSchema | null): Grammar {
    this.table ??= new TokenTable(this.tokenizer, this.opened.model.spec.vocab);
    try {
      return new Grammar(new Automaton(schema === null ? objectGrammar() : schemaGrammar(schema)), this.table);
    } catch (error) {
      if (error instanceof AnsatzError)
        throw badRequest(error.hint ? `${error.message}; ${error.hint}` : error.message, 'response_format');
      throw error;
    }
  }

  private usualCache(): number {
    const { model, config } = this.opened;
    if (whyNotRows(model)) return USUAL_CACHE;
    const { each, maxPages } = cacheSizes(model, config.precision);
    return Math.min(USUAL_CACHE, this.options.sequences * maxPages * each);
  }
}

function sameTokens(draft: Tokenizer, tokenizer: Tokenizer, name: string): void {
  const same =
    draft.vocabSize === tokenizer.vocabSize &&
    Array.from({ length: draft.vocabSize }, (_, id) => draft.idToToken(id) === tokenizer.idToToken(id)).every(Boolean);
  if (!same)
    throw new AnsatzError(`the draft model has other tokens than ${name}`, {
      hint: 'train both with the same data folder, or use --lookup',
    });
}
