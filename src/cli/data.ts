/** Data for a command: a prepared folder as it is, or text that is prepared first, with progress shown. */
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { AnsatzError } from '../backend/errors.ts';
import { type PrepareOptions, prepareCorpus } from '../data/prepare.ts';
import { readManifest } from '../data/shards.ts';
import { quoted } from './invocation.ts';
import type { Output } from './term/output.ts';
import type { Progress } from './term/progress.ts';

const stages = {
  read: { label: 'reading text', unit: 'B' },
  tokenizer: { label: 'training the tokenizer', unit: 'B' },
  tokens: { label: 'making tokens', unit: 'B' },
} as const;

/** Prepares text with a progress bar a stage. */
export async function prepareWithProgress(
  output: Output,
  options: Pick<PrepareOptions, 'paths' | 'folder' | 'vocab' | 'tokenizer' | 'seed' | 'corpus'>,
) {
  let stage: keyof typeof stages | undefined;
  let bar: Progress | undefined;
  return prepareCorpus({
    ...options,
    onProgress: (p) => {
      if (p.stage !== stage) {
        stage = p.stage;
        bar = output.progress({ ...stages[p.stage], total: p.total, quiet: true });
      }
      bar?.update(p.done);
    },
    onStage: (name, seconds, what) => {
      bar?.finish();
      bar = undefined;
      stage = undefined;
      output.say(`${name.padEnd(10)} ${what} (${seconds.toFixed(1)} s)`);
    },
  });
}

/** Whether a folder is what `prepare` writes, whole or damaged; a tokenizer.json alone may be anybody's. */
export const isPrepared = (folder: string): boolean =>
  existsSync(join(folder, 'tokenizer.json')) &&
  ['train.json', 'heldout.json', 'baselines.json'].some((name) => existsSync(join(folder, name)));

/** The prepared folder for --data: itself, or `target` filled from its text. Returns the folder and its vocabulary. */
export async function dataFolder(
  output: Output,
  data: string,
  target: string,
  vocab: number,
  seed?: number,
): Promise<{ folder: string; vocab: number }> {
  if (isPrepared(data)) return { folder: resolve(data), vocab: readManifest(data, 'train').vocabSize };
  if (existsSync(join(data, 'config.json')) && existsSync(join(data, 'checkpoints')))
    throw new AnsatzError(`${data}: is a run, not text to train on`, {
      hint: isPrepared(`${data}-data`)
        ? `--data ${quoted(`${data}-data`)} is what it was trained on`
        : `ansatz train ${quoted(data)} --resume continues it`,
    });
  const prepared = await prepareWithProgress(output, { paths: [data], folder: target, vocab, seed });
  return { folder: target, vocab: prepared.tokenizer.vocabSize };
}
