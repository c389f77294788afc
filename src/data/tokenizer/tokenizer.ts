/** Tokenizers in Hugging Face's tokenizer.json format: byte-level BPE, and SentencePiece's kinds (pieces.ts). */
import { randomBytes } from 'node:crypto';
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { AnsatzError } from '../../backend/errors.ts';
import { MATCH_ALL, MATCH_NOTHING } from './addon.ts';
import { byteLevelCodec, type Codec } from './codec.ts';
import type { JsonObject } from './json.ts';
import { pieceCodec, usesPieces } from './pieces.ts';
import type { Template } from './template.ts';
import { type Documents, type TrainOptions, trainJson, trainJsonAsync } from './train.ts';

export interface EncodeOptions {
  /**
   * `'token'` (the default, as Hugging Face) turns the text of an added token into that token; `'text'` encodes it like
   * any other text, so that a document can never inject a control token.
   */
  special?: 'token' | 'text';
  /** Add what the file's post_processor puts around a text, such as a BOS token. */
  template?: boolean;
}

export interface BatchOptions extends EncodeOptions {
  threads?: number;
}

export interface DecodeOptions {
  skipSpecial?: boolean;
}

// Names under which models publish the token that ends a document.
const EOT_NAMES = ['<|endoftext|>', '<|end_of_text|>', '<｜end▁of▁sentence｜>', '</s>', '<eos>'];

const toBytes = (text: string | Uint8Array) => (typeof text === 'string' ? Buffer.from(text, 'utf8') : text);

export class Tokenizer {
  /** Number of ids: the largest id plus one. */
  readonly vocabSize: number;
  /** Special tokens and their ids. */
  readonly specialIds: ReadonlyMap<string, number>;
  private readonly json: JsonObject;
  private readonly codec: Codec;
  private readonly ids: Map<string, number>;
  private readonly names: (string | undefined)[];
  private readonly special: Set<number>;
  /** Bytes of all tokens, one after another; token k is [ends[k], ends[k + 1]). */
  private readonly bytes: Uint8Array;
  private readonly ends: Uint32Array;

  private constructor(json: JsonObject) {
    this.json = json;
    this.codec = usesPieces(json) ? pieceCodec(json) : byteLevelCodec(json);
    const { vocab, added } = this.codec;
    this.ids = new Map([...vocab, ...added.map((token): [string, number] => [token.content, token.id])]);
    this.specialIds = new Map(added.filter((token) => token.special).map((token) => [token.content, token.id]));
    this.special = new Set(this.specialIds.values());
    let vocabSize = 0;
    for (const id of this.ids.values()) vocabSize = Math.max(vocabSize, id + 1);
    this.vocabSize = vocabSize;
    this.names = new Array(vocabSize).fill(undefined);
    for (const [token, id] of this.ids) this.names[id] = token;
    const contents = new Set(added.map((token) => token.id));
    const parts = this.names.map((name, id) => {
      if (name === undefined) return new Uint8Array(0);
      return this.codec.bytesOf(name, contents.has(id)) ?? Buffer.from(name, 'utf8');
    });
    this.bytes = Buffer.concat(parts);
    this.ends = new Uint32Array(vocabSize + 1);
    for (let id = 0; id < vocabSize; id++) this.ends[id + 1] = this.ends[id] + parts[id].length;
  }

  /** Learns a tokenizer from documents. The same documents give the same tokenizer, whatever their order or the threads. */
  static train(documents: Iterable<string | Uint8Array>, options: TrainOptions): Tokenizer {
    return new Tokenizer(trainJson(documents, options));
  }

  /** The same off the JavaScript thread. Buffers that were handed over must not change before the promise is settled. */
  static async trainAsync(documents: Documents, options: TrainOptions): Promise<Tokenizer> {
    return new Tokenizer(await trainJsonAsync(documents, options));
  }

  static fromJSON(json: unknown): Tokenizer {
    return new Tokenizer(json as JsonObject);
  }

  static fromFile(path: string): Tokenizer {
    let text: string;
    try {
      text = readFileSync(path, 'utf8');
    } catch (cause) {
      const why =
        (cause as NodeJS.ErrnoException).code === 'ENOENT' ? 'there is no such file' : (cause as Error).message;
      throw new AnsatzError(`cannot read the tokenizer ${path}: ${why}`, { cause });
    }
    try {
      return Tokenizer.fromJSON(JSON.parse(text));
    } catch (cause) {
      if (cause instanceof AnsatzError)
        throw new AnsatzError(`${path}: ${cause.message.replace(/^tokenizer\.json: /, '')}`, {
          hint: cause.hint,
          cause,
        });
      if (cause instanceof SyntaxError)
        throw new AnsatzError(`${path} is not valid JSON (${cause.message}): the file is damaged or not a tokenizer`, {
          hint: 'copy the file again, or train a new tokenizer',
          cause,
        });
      throw cause;
    }
  }

  /** The tokenizer.json object: as it was read, or as training made it. */
  toJSON(): JsonObject {
    return this.json;
  }

  /** Writes tokenizer.json; a reader sees the old file or the new one, never a part. */
  save(path: string): void {
    const temporary = `${path}.${process.pid}.${randomBytes(4).toString('hex')}.tmp`;
    try {
      const file = openSync(temporary, 'wx');
      try {
        writeFileSync(file, `${JSON.stringify(this.json, null, 2)}\n`);
        fsyncSync(file);
      } finally {
        closeSync(file);
      }
      renameSync(temporary, path);
    } catch (cause) {
      rmSync(temporary, { force: true });
      throw new AnsatzError(`cannot write the tokenizer ${path}: ${(cause as Error).message}`, { cause });
    }
  }

  tokenToId(token: string): number | undefined {
    return this.ids.get(token);
  }

  /** The vocabulary's name of a token (in the byte alphabet, see byte-level.ts); undefined for an id that is not used. */
  idToToken(id: number): string | undefined {
    this.check(id);
    return this.names[id];
  }

  /** The token that ends a document. */
  get eot(): number {
    // A control token goes before text of that name: Gemma has `</s>` as markup.
    const id = [this.specialIds, this.ids]
      .flatMap((ids) => EOT_NAMES.map((name) => ids.get(name)))
      .find((found) => found !== undefined);
    if (id === undefined)
      throw new AnsatzError(`this tokenizer has no end-of-text token (looked for ${EOT_NAMES.join(', ')})`, {
        hint: "train one with specials: ['<|endoftext|>']",
      });
    return id;
  }

  encode(text: string | Uint8Array, options: EncodeOptions = {}): Int32Array {
    return this.wrap(this.codec.encode(toBytes(text), matchOf(options)), options);
  }

  /** Encodes documents on several threads at once. */
  encodeBatch(documents: (string | Uint8Array)[], options: BatchOptions = {}): Int32Array[] {
    const results = this.codec.encodeBatch(documents.map(toBytes), matchOf(options), threadsOf(options));
    return results.map((ids) => this.wrap(ids, options));
  }

  /** The same off the JavaScript thread. The documents must not change before the promise is settled. */
  async encodeBatchAsync(documents: (string | Uint8Array)[], options: BatchOptions = {}): Promise<Int32Array[]> {
    const results = await this.codec.encodeBatchAsync(documents.map(toBytes), matchOf(options), threadsOf(options));
    return results.map((ids) => this.wrap(ids, options));
  }

  /** Tokens that the file's post_processor puts around a text. */
  get template(): Template {
    return this.codec.template;
  }

  /** The text of the tokens; bytes that are not UTF-8 become U+FFFD. */
  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    const text = new TextDecoder('utf-8', { ignoreBOM: true }).decode(this.decodeBytes(ids, options));
    return this.codec.leadingSpace && text.startsWith(' ') ? text.slice(1) : text;
  }

  decodeBytes(ids: Iterable<number>, options: DecodeOptions = {}): Uint8Array {
    const list = Array.isArray(ids) || ArrayBuffer.isView(ids) ? (ids as ArrayLike<number>) : [...ids];
    const skip = options.skipSpecial ? this.special : undefined;
    let length = 0;
    for (let k = 0; k < list.length; k++) {
      const id = list[k];
      this.check(id);
      length += this.ends[id + 1] - this.ends[id];
    }
    const out = new Uint8Array(length);
    let at = 0;
    for (let k = 0; k < list.length; k++) {
      const id = list[k];
      if (skip?.has(id)) continue;
      for (let b = this.ends[id]; b < this.ends[id + 1]; b++) out[at++] = this.bytes[b];
    }
    return out.subarray(0, at);
  }

  private check(id: number): void {
    if (!(Number.isInteger(id) && id >= 0 && id < this.vocabSize))
      throw new AnsatzError(`token id ${id} is outside the vocabulary (0 to ${this.vocabSize - 1})`, {
        hint: 'use the tokenizer that the model was trained with',
      });
  }

  private wrap(ids: Int32Array, options: EncodeOptions): Int32Array {
    const { before, after } = this.template;
    if (!options.template || before.length + after.length === 0) return ids;
    return Int32Array.from([...before, ...ids, ...after]);
  }
}

const matchOf = (options: EncodeOptions) => (options.special === 'text' ? MATCH_NOTHING : MATCH_ALL);
const threadsOf = (options: BatchOptions) => options.threads ?? availableParallelism();
