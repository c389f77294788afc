/** What `ansatz quickstart` does: real text to a trained model that writes, in about two minutes. */
import { existsSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { AnsatzError, openDevice } from '../../backend/index.ts';
import { PACKAGES_CORPUS } from '../../data/corpus.ts';
import { readBaselines } from '../../data/prepare.ts';
import { openTokens } from '../../data/shards.ts';
import { Tokenizer } from '../../data/tokenizer/index.ts';
import type { TokenData } from '../../data/types.ts';
import { Generator } from '../../infer/generate.ts';
import { parseTrainConfig } from '../../train/config.ts';
import { stepsForSeconds } from '../../train/horizon.ts';
import { latestCheckpoint } from '../../train/run/checkpoint.ts';
import { RunFolder } from '../../train/run/folder.ts';
import { lockOwner } from '../../train/run/lock.ts';
import { loadModel } from '../../train/session.ts';
import type { QuickstartFlags } from '../commands/quickstart.ts';
import { loadRecipe } from '../common.ts';
import { prepareWithProgress } from '../data.ts';
import { invocation, packageRoot, quoted, shortPath, spoken } from '../invocation.ts';
import { printable } from '../term/format.ts';
import type { Output } from '../term/output.ts';
import { pairs } from '../term/table.ts';
import { createRun, isRun, trainWithView } from './train.ts';

const NAME = 'quickstart';

export async function runQuickstart(output: Output, flags: QuickstartFlags): Promise<void> {
  const out = resolve(flags.out);
  const folder = `${out}-data`;
  requireOwnRun(out, flags.out);
  const text = resolve(flags.folder ?? join(packageRoot, 'node_modules'));
  const recipe = await loadRecipe('tiny');
  const device = openDevice('cpu').info();
  output.say([
    `${device.name}, ${device.threads} threads, kernels for ${device.level}`,
    `reading ${shortPath(text)}, then training for ${flags.seconds} s; all of it stays on this machine`,
    '',
  ]);
  const corpus = flags.folder ? { capBytes: 40e6 } : { ...PACKAGES_CORPUS, capBytes: 40e6 };
  await prepareWithProgress(output, { paths: [text], folder, vocab: recipe.vocab, corpus });

  const vocab = Tokenizer.fromFile(join(folder, 'tokenizer.json')).vocabSize;
  const input = recipe.config({ data: folder, vocab, steps: 1, seed: flags.seed });
  const steps = await stepsForSeconds(parseTrainConfig(input), flags.seconds);
  // A quickstart begins afresh: its own earlier run makes room.
  if (isRun(out)) rmSync(out, { recursive: true });
  const run = await createRun(out, { ...input, name: NAME, steps, checkpoint: { every: 0 } });
  output.say();
  const summary = await trainWithView(output, run, { resume: false, closing: false });
  const samples = summary.status === 'completed' ? await completions(output, run, folder) : [];
  const next = nextCommands(flags, summary.status === 'completed', samples[0]?.prompt);
  output.result(
    'quickstart',
    { run: flags.out, data: `${flags.out}-data`, ...summary, samples, next: next.map(([c]) => c) },
    [
      ...(summary.heldOut ? heldOutText(output, summary.heldOut.bitsPerByte, folder) : []),
      '',
      output.style.bold(summary.status === 'completed' ? 'your model is in ' : 'stopped; what there is of it is in ') +
        flags.out,
      ...next.flatMap(([command, why]) => [output.style.dim(`  # ${why}`), `  ${command}`]),
      ...(flags.folder ? [] : [output.style.dim('  # the same on your own text'), `  ${ownText()}`]),
    ],
  );
}

/** Only what an earlier quickstart made is replaced; anything else in that place is the user's. */
function requireOwnRun(out: string, named: string): void {
  if (!existsSync(out) || (isRun(out) && RunFolder.open(out).config.name === NAME)) {
    const owner = existsSync(out) ? lockOwner(out) : undefined;
    if (!owner) return;
    throw new AnsatzError(`${named}: process ${owner.pid} is training there`, {
      hint: 'stop it first, or name another folder with --out',
    });
  }
  if (statSync(out).isDirectory() && readdirSync(out).length === 0) return;
  throw new AnsatzError(`${named}: is not empty and not a quickstart run; nothing was changed`, {
    hint: 'name another folder with --out',
  });
}

/** What to do with it now, each with a reason; they work as printed. */
function nextCommands(flags: QuickstartFlags, completed: boolean, held?: string): [command: string, why: string][] {
  const out = quoted(flags.out);
  if (!completed) return [[spoken(`ansatz train ${out} --resume`), 'go on where it stopped']];
  const prompt = flags.folder ? firstWords(held) : 'export function ';
  const commands: [string, string][] = [
    [`ansatz generate ${out} --prompt ${quoted(prompt)}`, 'let it write; try --temperature 0.3 or 1.2, and --seed 1'],
    [
      `ansatz train tiny --data ${quoted(`${flags.out}-data`)} --seconds 600`,
      `a longer run on the same text; Ctrl-C saves, ${spoken('ansatz train runs/tiny --resume')} goes on`,
    ],
    ['ansatz inspect gpt2-124m', 'would a GPT-2 fit here, and how long would it take?'],
  ];
  return commands.map(([command, why]) => [spoken(command), why]);
}

const ownText = (): string =>
  invocation() === 'npx ansatz' ? 'npm run quickstart -- --folder PATH' : spoken('ansatz quickstart --folder PATH');

/** The beginning of a text as a prompt: up to four words of its first line that has some. */
function firstWords(text = ''): string {
  const line = text.split('\n').find((one) => /\w{2}/.test(one)) ?? 'The ';
  return line.trim().split(/\s+/).slice(0, 4).join(' ').slice(0, 32);
}

function heldOutText(output: Output, ours: number, folder: string): string[] {
  const others = Object.entries(readBaselines(folder)).map(([name, bits]): [string, string] => [name, bits.toFixed(3)]);
  return [
    '',
    output.style.bold('held-out text, bits per byte (lower is better)'),
    ...pairs([['this model', ours.toFixed(3)], ...others]).map((line) => `  ${line}`),
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
  const marked = output.style.enabled ? 'in bold' : 'after >>>';
  output.heading(`texts that it has never seen, and how it goes on (${marked})`);
  for (const d of spread(documentsOf(data, 80), 3)) {
    const ids = new Int32Array(40);
    data.read(data.docStarts[d], ids.length, ids, 0);
    const prompt = tokenizer.decode(ids);
    const completion = await generator.complete(prompt, { maxTokens: 48, temperature: 0.6, topK: 40, seed: 1 });
    samples.push({ prompt, completion });
    const clean = (text: string): string => printable(text, { unicode: output.unicode });
    const gap = output.style.enabled ? '' : ' >>> ';
    output.say([
      output.style.dim('-'.repeat(Math.min(60, output.columns))),
      `${output.style.dim(clean(prompt))}${gap}${output.style.bold(clean(completion))}`,
    ]);
  }
  await generator.dispose();
  data.close();
  return samples;
}

/** Documents of at least `tokens` tokens. */
function documentsOf(data: TokenData, tokens: number): number[] {
  return [...data.docBytes.keys()].filter((d) => data.docStarts[d + 1] - data.docStarts[d] > tokens);
}

/** Some of a list, far from each other: neighbours in a corpus are alike. */
function spread<T>(list: readonly T[], count: number): T[] {
  const some = Math.min(count, list.length);
  return Array.from({ length: some }, (_, k) => list[Math.floor(((k + 0.5) * list.length) / some)]);
}
