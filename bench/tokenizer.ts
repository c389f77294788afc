/** Tokenizer: training time, and encoding speed on one core against `@huggingface/tokenizers`. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Tokenizer as Peer } from '@huggingface/tokenizers';
import { Tokenizer } from '../src/data/tokenizer/index.ts';

export interface Row {
  name: string;
  ours: number;
  /** Undefined where the peer cannot do it. */
  peer?: number;
  ratio?: number;
  unit: string;
}

const TEXT_BYTES = 40e6;
const VOCAB = 4096;

/** The TypeScript, JavaScript and Markdown files of node_modules, in a fixed order. */
function collect(folder: string, files: Uint8Array[], limit: number): number {
  let bytes = 0;
  const entries = readdirSync(folder, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1));
  for (const entry of entries) {
    if (bytes >= limit) break;
    const path = join(folder, entry.name);
    if (entry.isDirectory()) bytes += collect(path, files, limit - bytes);
    else if (entry.isFile() && /\.(?:[cm]?[tj]s|md)$/.test(entry.name)) {
      const content = readFileSync(path);
      files.push(content);
      bytes += content.length;
    }
  }
  return bytes;
}

const seconds = (work: () => void): number => {
  const start = performance.now();
  work();
  return (performance.now() - start) / 1000;
};

/** Every so-many-th file that is not huge, about `bytes` in all: the peer is slow. */
function sample(files: Uint8Array[], bytes: number): string[] {
  const small = files.filter((file) => file.length < 100_000);
  const total = small.reduce((sum, file) => sum + file.length, 0);
  const step = Math.max(1, Math.floor(total / bytes));
  return small.filter((_, k) => k % step === 0).map((file) => Buffer.from(file).toString('utf8'));
}

export async function* run(): AsyncIterable<Row> {
  const files: Uint8Array[] = [];
  const total = collect(fileURLToPath(new URL('../node_modules', import.meta.url)), files, TEXT_BYTES);
  const megabytes = (total / 1e6).toFixed(1);

  for (const vocabSize of [VOCAB, 8 * VOCAB]) {
    const train = () => seconds(() => void Tokenizer.train(files, { vocabSize }));
    yield {
      name: `train ${megabytes} MB, vocabulary ${vocabSize}`,
      ours: Math.min(train(), train(), train()),
      unit: 's',
    };
  }

  const tokenizer = Tokenizer.train(files, { vocabSize: VOCAB });
  const peer = new Peer(JSON.parse(JSON.stringify(tokenizer)), {});
  const texts = sample(files, 1e6);
  const size = texts.reduce((sum, text) => sum + Buffer.byteLength(text), 0) / 1e6;
  const best = { ours: 0, peer: 0, whole: 0 };
  for (let round = 0; round < 5; round++) {
    // One call a document on the JavaScript thread, strings in and ids out, for both. Each round starts cold.
    const fresh = Tokenizer.fromJSON(tokenizer.toJSON());
    (peer.model as unknown as { clear_cache(): void }).clear_cache();
    const ours = seconds(() => texts.forEach((text) => void fresh.encode(text)));
    const theirs = seconds(() => texts.forEach((text) => void peer.encode(text, { add_special_tokens: false })));
    best.ours = Math.max(best.ours, size / ours);
    best.peer = Math.max(best.peer, size / theirs);
    best.whole = Math.max(best.whole, total / 1e6 / seconds(() => void tokenizer.encodeBatch(files, { threads: 1 })));
  }
  yield {
    name: `encode ${size.toFixed(1)} MB cold, one core`,
    ours: best.ours,
    peer: best.peer,
    ratio: best.ours / best.peer,
    unit: 'MB/s',
  };
  yield { name: `encode ${megabytes} MB in a batch, one core`, ours: best.whole, unit: 'MB/s' };
}
