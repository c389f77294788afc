/** ansatz quickstart: real text to a trained model that writes, in about two minutes. */
import { existsSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { Command } from 'commander';
import { openDevice } from '../../backend/index.ts';
import { PACKAGES_CORPUS } from '../../data/corpus.ts';
import { readBaselines } from '../../data/prepare.ts';
import { openTokens } from '../../data/shards.ts';
import { Tokenizer } from '../../data/tokenizer/index.ts';
import { Generator } from '../../infer/generate.ts';
import { parseTrainConfig } from '../../train/config.ts';
import { stepsForSeconds } from '../../train/horizon.ts';
import { latestCheckpoint } from '../../train/run/checkpoint.ts';
import type { RunFolder } from '../../train/run/folder.ts';
import { loadModel } from '../../train/session.ts';
import { action, loadRecipe, number, type OutputFlags } from '../common.ts';
import { prepareWithProgress } from '../data.ts';
import { printable } from '../term/format.ts';
import type { Output } from '../term/output.ts';
import { createRun, trainWithView } from './train.ts';

interface Flags extends OutputFlags {
  folder?: string;
  seconds: number;
  out: string;
  seed: number;
}

export function quickstartCommand(): Command {
  const command = new Command('quickstart')
    .description('Train a small model on the text of a folder, by default the sources in node_modules.')
    .option('--folder <path>', 'a folder of text')
    .option('--seconds <s>', 'training time', number('--seconds'), 90)
    .option('--out <folder>', 'run folder', 'runs/quickstart')
    .option(
      '--seed <n>',
      'random seed',
      number('--seed', (n) => Number.isInteger(n) && n >= 0),
      1,
    )
    .addHelpText(
      'after',
      '\nExamples:\n  npm run quickstart\n  npm run quickstart -- --folder ~/notes\n  npm run quickstart -- --seconds 30 --json',
    );
  return action(command, async (output, flags: Flags) => {
    const device = openDevice('cpu').info();
    if (output.mode !== 'json') output.say(`${device.name}, ${device.threads} threads, kernels for ${device.level}`);
    const out = resolve(flags.out);
    const folder = `${out}-data`;
    const recipe = await loadRecipe('tiny');
    const corpus = flags.folder ? { capBytes: 40e6 } : { ...PACKAGES_CORPUS, capBytes: 40e6 };
    await prepareWithProgress(output, {
      paths: [resolve(flags.folder ?? 'node_modules')],
      folder,
      vocab: recipe.vocab,
      corpus,
    });

    const vocab = Tokenizer.fromFile(join(folder, 'tokenizer.json')).vocabSize;
    const input = recipe.config({ data: folder, vocab, steps: 1, seed: flags.seed });
    const steps = await stepsForSeconds(parseTrainConfig(input), flags.seconds);
    // A quickstart begins afresh: its own earlier run makes room.
    if (existsSync(join(out, 'config.json'))) rmSync(out, { recursive: true });
    const run = await createRun(out, { ...input, name: 'quickstart', steps, checkpoint: { every: 0 } }, false);
    const summary = await trainWithView(output, run, { resume: false, closing: false });
    const samples = summary.status === 'completed' ? await completions(output, run, folder) : [];
    const next = [
      `ansatz generate ${flags.out} --prompt "export function "`,
      `ansatz train ${flags.out} --resume`,
      `ansatz train tiny --data ${flags.folder ?? 'FOLDER'} --seconds 600`,
      'ansatz inspect tiny',
    ].map((c) => `npx ${c}`);
    output.result('quickstart', { run: flags.out, ...summary, samples, next }, [
      ...(summary.heldOut ? heldOutText(output, summary.heldOut.bitsPerByte, folder) : []),
      '',
      output.style.bold('next'),
      ...next.map((c) => `  ${c}`),
    ]);
  });
}

function heldOutText(output: Output, ours: number, folder: string): string[] {
  const rows = Object.entries(readBaselines(folder)).map(([name, bits]): [string, number] => [name, bits]);
  const all: [string, number][] = [['this model', ours], ...rows];
  return [
    '',
    output.style.bold('held-out text, bits per byte (lower is better)'),
    ...all.map(([name, bits]) => `  ${name.padEnd(28)} ${bits.toFixed(3)}`),
  ];
}

/** Continues the beginnings of a few held-out documents. */
async function completions(
  output: Output,
  run: RunFolder,
  folder: string,
): Promise<{ prompt: string; completion: string }[]> {
  const checkpoint = await latestCheckpoint(run);
  if (!checkpoint) return [];
  const tokenizer = Tokenizer.fromFile(join(folder, 'tokenizer.json'));
  const data = openTokens(folder, 'heldout');
  const { device, model, params, config } = await loadModel(run.config, checkpoint);
  const generator = new Generator(device, model, params, tokenizer, config.precision);
  const samples: { prompt: string; completion: string }[] = [];
  if (output.mode !== 'json') output.say(['', output.style.bold('completions of held-out text')]);
  const documents = [...data.docStarts.keys()].filter(
    (d) => d < data.documentCount && data.docStarts[d + 1] - data.docStarts[d] > 80,
  );
  for (const d of documents.slice(0, 3)) {
    const ids = new Int32Array(48);
    data.read(data.docStarts[d] + 16, 48, ids, 0);
    const prompt = tokenizer.decode(ids);
    const completion = await generator.complete(prompt, { maxTokens: 48, temperature: 0.6, topK: 40, seed: 1 });
    samples.push({ prompt, completion });
    if (output.mode !== 'json') {
      const clean = (text: string): string => printable(text, { unicode: output.unicode });
      output.say(
        `${output.style.dim(clean(prompt))}${output.style.bold(clean(completion))}\n${output.style.dim('-'.repeat(Math.min(60, output.columns)))}`,
      );
    }
  }
  generator.dispose();
  data.close();
  return samples;
}
