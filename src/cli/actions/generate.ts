/** What `ansatz generate` does. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { AnsatzError } from '../../backend/errors.ts';
import { tokenizerHash } from '../../data/prepare.ts';
import { Tokenizer } from '../../data/tokenizer/index.ts';
import { Generator } from '../../infer/generate.ts';
import { parseTrainConfig } from '../../train/config.ts';
import { objectiveOf } from '../../train/objective.ts';
import { Checkpoint, checkpointPath, latestCheckpoint, listCheckpoints } from '../../train/run/checkpoint.ts';
import { RunFolder } from '../../train/run/folder.ts';
import { loadModel } from '../../train/session.ts';
import type { GenerateFlags } from '../commands/generate.ts';
import { quoted } from '../invocation.ts';
import { printable } from '../term/format.ts';
import type { Output } from '../term/output.ts';

export async function runGenerate(output: Output, path: string, flags: GenerateFlags): Promise<void> {
  const run = RunFolder.open(path);
  const checkpoint = await chooseCheckpoint(output, run, path, flags.step);
  const config = parseTrainConfig(run.config);
  const tokenizer = runTokenizer(run, config.data.folder, checkpoint);
  const { device, model, params } = await loadModel(config, checkpoint);
  const generator = new Generator(device, model, params, tokenizer, config.precision, objectiveOf(config));
  const { maxTokens, temperature, topK, topP, seed, context, mode, specials } = flags;
  const options = {
    maxTokens,
    temperature,
    topK,
    topP,
    seed,
    ...(context === undefined ? {} : { context }),
    ...(mode ? { mode } : {}),
    ...(specials ? { specials } : {}),
  };
  if (output.mode === 'json') {
    const started = performance.now();
    const completion = await generator.complete(flags.prompt, options);
    const ms = performance.now() - started;
    const fields = { run: path, step: checkpoint.step, prompt: flags.prompt, completion, ...options, ms };
    output.result('generate', fields, '');
  } else {
    // A pipe gets the text as it is; a terminal must not obey control characters that a model makes up.
    const shown = (text: string): string =>
      output.mode === 'tty' ? printable(text, { unicode: output.unicode }) : text;
    process.stdout.write(output.style.dim(shown(flags.prompt)));
    for await (const piece of generator.stream(flags.prompt, options)) process.stdout.write(shown(piece));
    process.stdout.write('\n');
  }
  generator.dispose();
}

/** The checkpoint of a step, or the newest that is usable. */
export async function chooseCheckpoint(
  output: Output,
  run: RunFolder,
  path: string,
  step: number | undefined,
): Promise<Checkpoint> {
  const steps = listCheckpoints(run);
  const resume = { hint: `ansatz train ${quoted(path)} --resume` };
  if (steps.length === 0) throw new AnsatzError(`${path}: has no checkpoint to generate from`, resume);
  if (step !== undefined) {
    if (!steps.includes(step))
      throw new AnsatzError(`${path}: has no checkpoint of step ${step}`, {
        hint: `choose from ${steps.join(', ')}, or leave --step out for the newest`,
      });
    return Checkpoint.load(checkpointPath(run, step));
  }
  const problems: string[] = [];
  const newest = await latestCheckpoint(run, { warn: (w) => problems.push(w.message) });
  if (!newest)
    throw new AnsatzError(`${path}: no checkpoint is usable: ${problems[0].replace(/; trying .*/, '')}`, {
      hint: 'restore one from a copy, or train again',
    });
  for (const message of problems) output.warn(message);
  return newest;
}

/** The tokenizer that a run was trained with: its own copy, or the data folder's. */
export function runTokenizer(run: RunFolder, dataFolder: string, checkpoint: Checkpoint): Tokenizer {
  const own = join(run.path, 'tokenizer.json');
  const path = existsSync(own) ? own : join(dataFolder, 'tokenizer.json');
  const tokenizer = Tokenizer.fromFile(path);
  const { tokenizer: wanted } = checkpoint.state;
  if (typeof wanted === 'string' && wanted !== tokenizerHash(tokenizer))
    throw new AnsatzError(`${path}: is not the tokenizer that ${run.name} was trained with`, {
      hint: 'put the original tokenizer.json back: ids of another one mean other text',
    });
  return tokenizer;
}
