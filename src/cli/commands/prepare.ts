/** ansatz prepare: text into a tokenizer and token shards. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Command } from 'commander';
import { action, number, type OutputFlags } from '../common.ts';
import { quoted, spoken } from '../invocation.ts';

interface Flags extends OutputFlags {
  out: string;
  vocab: number;
  tokenizer?: string;
  cap: number;
  seed: number;
}

export function prepareCommand(): Command {
  const command = new Command('prepare')
    .description('Read a folder or files of text, train a tokenizer (or take one), write token shards.')
    .argument('<paths...>', 'folders, text files, .jsonl or .jsonl.gz')
    .requiredOption('--out <folder>', 'where tokenizer.json and the shards go')
    .option(
      '--vocab <n>',
      'size of the vocabulary',
      number('--vocab', (n) => Number.isInteger(n) && n > 256 && n <= 2 ** 24),
      4096,
    )
    .option('--tokenizer <path>', "use this run's tokenizer, or this tokenizer.json, instead of training one")
    .option('--cap <MB>', 'stop after this many megabytes of text', number('--cap'), 40)
    .option(
      '--seed <n>',
      'which documents are held out',
      number('--seed', (n) => Number.isInteger(n) && n >= 0),
      0,
    )
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz prepare ~/notes --out data/notes\n  ansatz prepare corpus.jsonl.gz --out data/c --vocab 16384 --cap 500 --json\n  ansatz prepare ~/notes --out data/for-qwen --tokenizer runs/qwen',
    );
  return action(command, async (output, paths: string[], flags: Flags) => {
    const { prepareWithProgress } = await import('../data.ts');
    const { Tokenizer } = await import('../../data/tokenizer/index.ts');
    const given = flags.tokenizer;
    const file = given && existsSync(join(given, 'tokenizer.json')) ? join(given, 'tokenizer.json') : given;
    const p = await prepareWithProgress(output, {
      paths,
      folder: flags.out,
      vocab: flags.vocab,
      tokenizer: file === undefined ? undefined : Tokenizer.fromFile(file),
      seed: flags.seed,
      corpus: { capBytes: flags.cap * 1e6 },
    });
    const next = spoken(`ansatz train tiny --data ${quoted(flags.out)}`);
    const fields = {
      folder: flags.out,
      vocab: p.tokenizer.vocabSize,
      trainTokens: p.train.tokens,
      heldOutTokens: p.heldOut.tokens,
      corpus: p.corpus,
      split: p.split,
      baselines: p.baselines,
      next: [next],
    };
    output.result('prepare', fields, [
      `prepared ${flags.out}: ${p.train.documents} documents to train on, ${p.heldOut.documents} held out`,
      `next: ${next}`,
    ]);
  });
}
