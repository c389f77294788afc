/** Learning a byte-level BPE vocabulary, as the object that tokenizer.json holds. */
import { availableParallelism } from 'node:os';
import { AnsatzError } from '../../backend/errors.ts';
import { createTrainer, type NativeTrainer } from './addon.ts';
import { ALPHABET_ORDER, BYTE_SYMBOLS, symbolsToBytes } from './byte-level.ts';
import { textFromBytes } from './escaped-text.ts';
import type { JsonObject } from './json.ts';
import { NAMED_PATTERNS, nativePattern, WHOLE } from './patterns.ts';
import { splitText } from './splitter.ts';
import { parseStages, type Stage } from './stages.ts';

export type Documents = Iterable<string | Uint8Array> | AsyncIterable<string | Uint8Array>;

export interface TrainProgress {
  /** Counting the words of the corpus, then merging. */
  phase: 'count' | 'merge';
  /** Bytes of text read. */
  bytes: number;
  /** Tokens made, of vocabSize. */
  tokens: number;
  vocabSize: number;
}

export interface TrainOptions {
  /** Special tokens, the 256 bytes and merges together. Fewer come out when the text has no more pairs to merge. */
  vocabSize: number;
  /** Control tokens, with ids 0, 1, ... Default: `<|endoftext|>`. */
  specials?: string[];
  /** A pair must occur this often to become a token. Default 2. */
  minFrequency?: number;
  /** `cl100k` (default), `qwen2`, `gpt2`, or a regular expression in tokenizer.json's (Oniguruma) syntax. */
  pattern?: string;
  threads?: number;
  onProgress?: (progress: TrainProgress) => void;
}

// Documents are handed over in batches: large enough for the threads, small enough for progress and for memory.
const BATCH_BYTES = 8 << 20;
const SLICE_MILLISECONDS = 50;

class Training {
  readonly trainer: NativeTrainer;
  readonly threads: number;
  private readonly options: TrainOptions;
  private readonly specials: string[];
  private readonly preTokenizer: JsonObject;
  private readonly stages: Stage[] | undefined; // where there is no native scanner for the pattern
  private phase: TrainProgress['phase'] = 'count';

  constructor(options: TrainOptions) {
    const { vocabSize, minFrequency = 2, pattern = 'cl100k' } = options;
    this.options = options;
    this.threads = options.threads ?? availableParallelism();
    this.specials = checkSpecials(options.specials ?? ['<|endoftext|>']);
    const smallest = this.specials.length + 256;
    if (!Number.isInteger(vocabSize) || vocabSize < smallest || vocabSize > 1 << 24)
      throw new AnsatzError(
        `a vocabulary of ${vocabSize} is not possible: ${this.specials.length} special tokens and 256 bytes need ${smallest}`,
        { hint: `choose a vocabulary size of at least ${smallest}` },
      );
    if (!Number.isInteger(minFrequency) || minFrequency < 0)
      throw new AnsatzError(`minFrequency is ${minFrequency}, not a non-negative integer`);
    const regex = Object.hasOwn(NAMED_PATTERNS, pattern) ? NAMED_PATTERNS[pattern] : pattern;
    this.preTokenizer = {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    };
    const native = nativePattern(regex);
    this.stages = native ? undefined : parseStages(this.preTokenizer);
    const byteIds = new Uint32Array(256);
    ALPHABET_ORDER.forEach((byte, k) => {
      byteIds[byte] = this.specials.length + k;
    });
    this.trainer = createTrainer({
      vocabSize,
      minFrequency,
      byteIds,
      reserved: this.specials.map((token) => symbolsToBytes(token) ?? new Uint8Array(0)),
      pattern: native ?? WHOLE,
    });
  }

  /** Takes a document that JavaScript has to split; false if the native trainer can. */
  takeSplit(document: Uint8Array): boolean {
    if (!this.stages) return false;
    const pieces = splitText(this.stages, textFromBytes(document));
    this.trainer.addPieces(pieces.bytes, pieces.ends);
    return true;
  }

  report(phase = this.phase): void {
    this.phase = phase;
    this.options.onProgress?.({ phase, ...this.trainer.progress(), vocabSize: this.options.vocabSize });
  }

  result(): JsonObject {
    const tokens = [...this.specials, ...ALPHABET_ORDER.map((byte) => BYTE_SYMBOLS[byte])];
    const triples = this.trainer.merges();
    const merges: string[] = [];
    for (let k = 0; k < triples.length; k += 3) {
      const [left, right] = [tokens[triples[k]], tokens[triples[k + 1]]];
      tokens[triples[k + 2]] = left + right;
      merges.push(`${left} ${right}`);
    }
    const vocab: JsonObject = Object.create(null); // "__proto__" can be a token
    tokens.forEach((token, id) => {
      vocab[token] = id;
    });
    return {
      version: '1.0',
      truncation: null,
      padding: null,
      added_tokens: this.specials.map((content, id) => ({
        id,
        content,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
      })),
      normalizer: null,
      pre_tokenizer: this.preTokenizer,
      post_processor: null,
      decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
      model: {
        type: 'BPE',
        dropout: null,
        unk_token: null,
        continuing_subword_prefix: null,
        end_of_word_suffix: null,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: false,
        vocab,
        merges,
      },
    };
  }
}

function checkSpecials(specials: string[]): string[] {
  for (const token of specials) {
    if (token === '') throw new AnsatzError('a special token cannot be empty');
    if (BYTE_SYMBOLS.includes(token))
      throw new AnsatzError(`the special token ${JSON.stringify(token)} is also the symbol of a byte`, {
        hint: 'give it a longer name, such as <|name|>',
      });
  }
  if (new Set(specials).size !== specials.length)
    throw new AnsatzError(`a special token is named twice: ${specials.join(', ')}`);
  return [...specials];
}

const toBytes = (document: string | Uint8Array) =>
  typeof document === 'string' ? Buffer.from(document, 'utf8') : document;

export function trainJson(documents: Iterable<string | Uint8Array>, options: TrainOptions): JsonObject {
  const training = new Training(options);
  let batch: Uint8Array[] = [];
  let size = 0;
  const flush = () => {
    training.trainer.addTexts(batch, training.threads);
    batch = [];
    size = 0;
    training.report();
  };
  for (const document of documents) {
    const bytes = toBytes(document);
    size += bytes.length;
    if (!training.takeSplit(bytes)) batch.push(bytes);
    if (size >= BATCH_BYTES) flush();
  }
  flush();
  training.report('merge');
  while (!training.trainer.run(SLICE_MILLISECONDS)) training.report();
  training.report();
  return training.result();
}

/** Reports from time to time while native work is under way. */
async function watch(work: Promise<void>, training: Training): Promise<void> {
  let settled = false;
  const end = work.finally(() => {
    settled = true;
  });
  while (!settled) {
    let timer: NodeJS.Timeout | undefined;
    const tick = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, SLICE_MILLISECONDS);
    });
    await Promise.race([end, tick]);
    clearTimeout(timer);
    training.report();
  }
  await end;
}

export async function trainJsonAsync(documents: Documents, options: TrainOptions): Promise<JsonObject> {
  const training = new Training(options);
  let batch: Uint8Array[] = [];
  let size = 0;
  const flush = async () => {
    await watch(training.trainer.addTextsAsync(batch, training.threads), training);
    batch = [];
    size = 0;
  };
  for await (const document of documents) {
    const bytes = toBytes(document);
    size += bytes.length;
    if (!training.takeSplit(bytes)) batch.push(bytes);
    if (size >= BATCH_BYTES) await flush();
  }
  await flush();
  training.report('merge');
  await watch(training.trainer.runAsync(), training);
  return training.result();
}
