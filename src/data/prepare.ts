/**
 * From a folder of text to what a run reads: tokenizer.json, training and held-out token shards, and what general
 * compressors make of the held-out text (baselines.json), all in one folder.
 */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { AnsatzError } from '../backend/errors.ts';
import { type Baselines, compressionBaselines } from './baselines.ts';
import { type Corpus, type CorpusOptions, type CorpusProgress, readCorpus } from './corpus.ts';
import { PrepareFolder } from './prepare-folder.ts';
import { type Manifest, writeShards } from './shards.ts';
import { writeAtomically } from './shards-write.ts';
import { type Split, splitHeldOut } from './split.ts';
import { Tokenizer } from './tokenizer/index.ts';
import type { DocumentEncoder } from './types.ts';

export const EOT = '<|endoftext|>';

/** Told as the work goes on; `done` of `total` in the stage's unit. */
export interface PrepareProgress {
  stage: 'read' | 'tokenizer' | 'tokens';
  done: number;
  total: number | undefined;
}

export interface PrepareOptions {
  paths: readonly string[];
  /** Where the results go. */
  folder: string;
  vocab: number;
  /** Takes this tokenizer instead of training one of `vocab` tokens: another model's, to go on from it. */
  tokenizer?: Tokenizer;
  corpus?: CorpusOptions;
  seed?: number;
  onProgress?: (progress: PrepareProgress) => void;
  /** Called when a stage is over, with its seconds and one line about it. */
  onStage?: (stage: PrepareProgress['stage'] | 'baselines', seconds: number, what: string) => void;
}

export interface Prepared {
  tokenizer: Tokenizer;
  corpus: Corpus['report'];
  split: Omit<Split, 'train' | 'heldOut'>;
  train: Manifest;
  heldOut: Manifest;
  baselines: Baselines;
}

/** A tokenizer as the data layer sees it: documents are plain text, whatever they contain. */
export function documentEncoder(tokenizer: Tokenizer): DocumentEncoder {
  const { eot } = tokenizer;
  return {
    vocabSize: tokenizer.vocabSize,
    eot,
    encodeBatch: (docs) => tokenizer.encodeBatchAsync(docs, { special: 'text' }),
  };
}

/** Names a tokenizer by what it does: SHA-256 of its JSON. */
export const tokenizerHash = (tokenizer: Tokenizer): string =>
  createHash('sha256').update(JSON.stringify(tokenizer.toJSON())).digest('hex');

/**
 * Prepares text in a folder. What the folder held before stays whole until the new data is.
 * @throws AnsatzError when there is no text, too little of it, or the folder is not for this.
 */
export async function prepareCorpus(options: PrepareOptions): Promise<Prepared> {
  const target = new PrepareFolder(options.folder);
  const { paths, seed = 0, onProgress, onStage } = options;
  let started = performance.now();
  const lap = (): number => {
    const now = performance.now();
    const seconds = (now - started) / 1000;
    started = now;
    return seconds;
  };
  const { documents, report } = await readCorpus(paths, {
    ...options.corpus,
    onProgress: (p: CorpusProgress) => onProgress?.({ stage: 'read', done: p.bytes, total: p.capBytes }),
  });
  const split = splitHeldOut(documents, { seed });
  onStage?.('read', lap(), `${documents.length} documents, ${(report.bytes / 1e6).toFixed(1)} MB`);

  const tokenizer =
    options.tokenizer ??
    (await Tokenizer.trainAsync(
      split.train.map((d) => d.text),
      {
        vocabSize: options.vocab,
        specials: [EOT],
        onProgress: (p) => onProgress?.({ stage: 'tokenizer', done: p.bytes, total: split.trainBytes }),
      },
    ));
  onStage?.('tokenizer', lap(), `vocabulary ${tokenizer.vocabSize}`);

  return target.fill(async (folder) => {
    tokenizer.save(join(folder, 'tokenizer.json'));
    const encoder = documentEncoder(tokenizer);
    const hash = tokenizerHash(tokenizer);
    const total = split.trainBytes + split.heldOutBytes;
    const shards = (name: string, docs: typeof documents, before: number): Promise<Manifest> =>
      writeShards(docs, encoder, {
        folder,
        name,
        tokenizerHash: hash,
        source: report,
        onProgress: (p) => onProgress?.({ stage: 'tokens', done: before + p.textBytes, total }),
      });
    // The compressors run in other threads and processes while the tokens are made.
    const compressed = compressionBaselines(split.heldOut);
    compressed.catch(() => {}); // awaited below, unless making tokens fails first
    const train = await shards('train', split.train, 0);
    const heldOut = await shards('heldout', split.heldOut, split.trainBytes);
    onStage?.(
      'tokens',
      lap(),
      `${(train.tokens / 1e6).toFixed(2)}M tokens to train on, ${(heldOut.tokens / 1e3).toFixed(0)}K held out`,
    );
    const baselines = await compressed;
    await writeAtomically(join(folder, 'baselines.json'), [Buffer.from(`${JSON.stringify(baselines, null, 2)}\n`)]);
    onStage?.('baselines', lap(), `${baselines.gzip.name} and ${baselines.strong.name}`);
    const { train: _t, heldOut: _h, ...rest } = split;
    return { tokenizer, corpus: report, split: rest, train, heldOut, baselines };
  });
}

/** Bits per byte of general compressors on the held-out text of a prepared folder, by name; empty when unknown. */
export function readBaselines(folder: string): Record<string, number> {
  const path = join(folder, 'baselines.json');
  if (!existsSync(path)) return {};
  try {
    const b = JSON.parse(readFileSync(path, 'utf8')) as Baselines;
    return { [b.gzip.name]: b.gzip.bitsPerByte, [b.strong.name]: b.strong.bitsPerByte };
  } catch (cause) {
    throw new AnsatzError(`${path} is damaged: ${(cause as Error).message}`, { hint: 'prepare the data again', cause });
  }
}
