/** ansatz generate: text from a trained run. */

import { join } from 'node:path';
import { Command } from 'commander';
import { AnsatzError } from '../../backend/errors.ts';
import { Tokenizer } from '../../data/tokenizer/index.ts';
import { Generator } from '../../infer/generate.ts';
import { parseTrainConfig } from '../../train/config.ts';
import { Checkpoint, checkpointPath, latestCheckpoint } from '../../train/run/checkpoint.ts';
import { RunFolder } from '../../train/run/folder.ts';
import { loadModel } from '../../train/session.ts';
import { action, number, type OutputFlags } from '../common.ts';

interface Flags extends OutputFlags {
  prompt: string;
  maxTokens: number;
  temperature: number;
  topK: number;
  topP: number;
  seed: number;
  step?: number;
}

export function generateCommand(): Command {
  const whole = (n: number): boolean => Number.isInteger(n) && n >= 0;
  const command = new Command('generate')
    .description('Continue a prompt with a trained run.')
    .argument('<run>', 'run folder')
    .option('--prompt <text>', 'what to continue', '')
    .option(
      '--max-tokens <n>',
      'stop after this many tokens',
      number('--max-tokens', (n) => Number.isInteger(n) && n > 0),
      128,
    )
    .option(
      '--temperature <t>',
      '0 takes the most likely token',
      number('--temperature', (n) => n >= 0),
      0.8,
    )
    .option('--top-k <n>', 'choose among the n most likely tokens; 0: all', number('--top-k', whole), 40)
    .option(
      '--top-p <p>',
      'choose among the most likely tokens that reach this probability',
      number('--top-p', (n) => n > 0 && n <= 1),
      1,
    )
    .option('--seed <n>', 'same seed, same text', number('--seed', whole), 0)
    .option('--step <n>', 'checkpoint to use; by default the newest', number('--step', whole))
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz generate runs/quickstart --prompt "export function "\n  ansatz generate runs/quickstart --prompt "# Usage" --temperature 0 --json',
    );
  return action(command, async (output, path: string, flags: Flags) => {
    const run = RunFolder.open(path);
    const checkpoint =
      flags.step === undefined
        ? await latestCheckpoint(run, { warn: (w) => output.warn(w.message, w.hint) })
        : await Checkpoint.load(checkpointPath(run, flags.step));
    if (!checkpoint)
      throw new AnsatzError(`${path}: has no checkpoint to generate from`, { hint: `ansatz train ${path} --resume` });
    const config = parseTrainConfig(run.config);
    const tokenizer = Tokenizer.fromFile(join(config.data.folder, 'tokenizer.json'));
    const { device, model, params } = await loadModel(config, checkpoint);
    const generator = new Generator(device, model, params, tokenizer, config.precision);
    const options = {
      maxTokens: flags.maxTokens,
      temperature: flags.temperature,
      topK: flags.topK,
      topP: flags.topP,
      seed: flags.seed,
    };
    if (output.mode === 'json') {
      const started = performance.now();
      const completion = await generator.complete(flags.prompt, options);
      output.result(
        'generate',
        {
          run: path,
          step: checkpoint.step,
          prompt: flags.prompt,
          completion,
          ...options,
          ms: performance.now() - started,
        },
        '',
      );
    } else {
      process.stdout.write(flags.prompt);
      for await (const piece of generator.stream(flags.prompt, options)) process.stdout.write(piece);
      process.stdout.write('\n');
    }
    generator.dispose();
  });
}
