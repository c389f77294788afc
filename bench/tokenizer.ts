/** Tokenizer: training time, and encoding speed on one core against `@huggingface/tokenizers`. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Tokenizer as Peer } from '@huggingface/tokenizers';
import { Tokenizer } from '../src/data/tokenizer/index.ts';
import { interleave, type Row } from './harness.ts';

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
    const { ours, spread } = await interleave(train, null, 5);
    const name = `tokenizer/train/${megabytes}MB/${vocabSize}`;
    yield {
      name,
      ours,
      peer: null,
      ratio: null,
      spread,
      unit: 's',
      lowerIsBetter: true,
      note: 'the peer cannot train',
    };
  }

  const tokenizer = Tokenizer.train(files, { vocabSize: VOCAB });
  const peer = new Peer(JSON.parse(JSON.stringify(tokenizer)), {});
  const texts = sample(files, 1e6);
  const size = texts.reduce((sum, text) => sum + Buffer.byteLength(text), 0) / 1e6;
  // One call a document on one thread, strings in and ids out, for both; every turn starts with cold caches.
  const encode = () => {
    const fresh = Tokenizer.fromJSON(tokenizer.toJSON());
    return size / seconds(() => texts.forEach((text) => void fresh.encode(text)));
  };
  const encodePeer = async () => {
    (peer.model as unknown as { clear_cache(): void }).clear_cache();
    return size / seconds(() => texts.forEach((text) => void peer.encode(text, { add_special_tokens: false })));
  };
  const cold = await interleave(encode, encodePeer, 5);
  yield {
    name: `tokenizer/encode/${size.toFixed(1)}MB/cold`,
    ...cold,
    peerName: '@huggingface/tokenizers',
    unit: 'MB/s',
  };

  const encodeAll = () => total / 1e6 / seconds(() => void tokenizer.encodeBatch(files, { threads: 1 }));
  const whole = await interleave(encodeAll, null, 5);
  yield { name: `tokenizer/encode/${megabytes}MB/batch`, ...whole, unit: 'MB/s' };
}
