/** What `ansatz quickstart` does: real text to a trained model that writes, in about two minutes. */
import { existsSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { AnsatzError, openDevice } from '../../backend/index.ts';
import { PACKAGES_CORPUS } from '../../data/corpus.ts';
import { readBaselines } from '../../data/prepare.ts';
import { openTokens } from '../../data/shards.ts';
import { Tokenizer } from '../../data/tokenizer/index.ts';
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
import { packageRoot, quoted, shortPath, spoken } from '../invocation.ts';
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
  const next = nextCommands(flags.out, summary.status === 'completed', samples[0]?.prompt);
  output.result(
    'quickstart',
    { run: flags.out, data: `${flags.out}-data`, ...summary, samples, next: next.map(([c]) => c) },
    [
      ...(summary.heldOut ? heldOutText(output, summary.heldOut.bitsPerByte, folder) : []),
      '',
      output.style.bold(summary.status === 'completed' ? 'your model is in ' : 'stopped; what there is of it is in ') +
        flags.out,
      ...next.flatMap(([command, why]) => [`  ${output.style.dim(`# ${why}`)}`, `  ${command}`]),
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
function nextCommands(out: string, completed: boolean, prompt = 'The '): [command: string, why: string][] {
  const start =
    prompt
      .split('\n')
      .find((line) => /\w/.test(line))
      ?.trimStart()
      .slice(0, 24) ?? 'The ';
  const commands: [string, string][] = completed
    ? [
        [
          `ansatz generate ${quoted(out)} --prompt ${quoted(start)}`,
          'let it write on; --temperature 0.3 to 1.2, --seed 1, 2, 3',
        ],
        [
          `ansatz train tiny --data ${quoted(`${out}-data`)} --seconds 600`,
          'ten minutes on the same text; Ctrl-C saves, --resume goes on',
        ],
        ['ansatz inspect gpt2-124m', 'what a GPT-2 would take on this machine'],
      ]
    : [[`ansatz train ${quoted(out)} --resume`, 'go on where it stopped']];
  return commands.map(([command, why]) => [spoken(command), why]);
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
  output.heading('it has never seen these texts; the bold part is its own');
  const documents = [...data.docBytes.keys()].filter((d) => data.docStarts[d + 1] - data.docStarts[d] > 80);
  for (const d of documents.slice(0, 3)) {
    const ids = new Int32Array(48);
    data.read(data.docStarts[d] + 16, 48, ids, 0);
    const prompt = tokenizer.decode(ids);
    const completion = await generator.complete(prompt, { maxTokens: 48, temperature: 0.6, topK: 40, seed: 1 });
    samples.push({ prompt, completion });
    const clean = (text: string): string => printable(text, { unicode: output.unicode });
    output.say([
      output.style.dim('-'.repeat(Math.min(60, output.columns))),
      `${output.style.dim(clean(prompt))}${output.style.bold(clean(completion))}`,
    ]);
  }
  generator.dispose();
  data.close();
  return samples;
}
