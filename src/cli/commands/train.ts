/** ansatz train: a recipe on data, or a run that goes on. */
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { Command } from 'commander';
import { AnsatzError } from '../../backend/errors.ts';
import { accountFor, refuseWhatDoesNotFit } from '../../train/account.ts';
import type { TrainConfigInput } from '../../train/config.ts';
import { parseTrainConfig } from '../../train/config.ts';
import { stepsForSeconds } from '../../train/horizon.ts';
import type { JsonObject } from '../../train/run/canonical.ts';
import { RunFolder } from '../../train/run/folder.ts';
import { writeReport } from '../../train/run/report.ts';
import { train } from '../../train/trainer.ts';
import { action, applySettings, loadRecipe, number, type OutputFlags, recipeNames } from '../common.ts';
import { dataFolder } from '../data.ts';
import { LiveView } from '../term/live.ts';
import { type Output, UsageError } from '../term/output.ts';

interface Flags extends OutputFlags {
  data?: string;
  out?: string;
  steps?: number;
  seconds?: number;
  seed?: number;
  set: string[];
  resume?: boolean;
}

export function trainCommand(): Command {
  const command = new Command('train')
    .description('Train a recipe on text, or continue a run.')
    .argument('<recipe>', `a recipe (${recipeNames().join(', ')}), a .ts or .json file, or with --resume a run folder`)
    .option('--data <folder>', 'a folder of text, or one that `ansatz prepare` made')
    .option('--out <folder>', 'run folder; by default runs/<recipe>')
    .option(
      '--steps <n>',
      'optimiser steps',
      number('--steps', (n) => Number.isInteger(n) && n > 0),
    )
    .option('--seconds <s>', 'as many steps as fit, by measuring first', number('--seconds'))
    .option(
      '--seed <n>',
      'random seed',
      number('--seed', (n) => Number.isInteger(n) && n >= 0),
    )
    .option(
      '--set <field=value>',
      'change a field of the config; repeatable',
      (v: string, all: string[]) => [...all, v],
      [],
    )
    .option('--resume', 'continue from the newest checkpoint')
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz train tiny --data ~/notes --seconds 300\n  ansatz train tiny --data data/notes --set optimiser.lr=0.002 --set model.depth=8\n  ansatz train runs/tiny --resume\n  ansatz train my-recipe.ts --data data/notes --json',
    );
  return action(command, async (output, recipe: string, flags: Flags) => {
    if (flags.steps && flags.seconds) throw new UsageError('--steps and --seconds exclude each other');
    const resumed = flags.resume && existsSync(join(recipe, 'config.json'));
    const run = resumed ? RunFolder.open(recipe) : await newRun(output, recipe, flags);
    await trainWithView(output, run, { resume: flags.resume ?? false });
  });
}

async function newRun(output: Output, name: string, flags: Flags): Promise<RunFolder> {
  const recipe = await loadRecipe(name);
  if (!flags.data)
    throw new UsageError('--data is missing: a folder of text or of prepared tokens', {
      hint: `ansatz train ${name} --data FOLDER`,
    });
  const label = name.replace(/^.*[\\/]/, '').replace(/\.\w+$/, '');
  const out = flags.out ?? join('runs', label);
  const data = await dataFolder(output, resolve(flags.data), resolve(`${out}-data`), recipe.vocab, flags.seed);
  const config: TrainConfigInput = recipe.config({
    data: data.folder,
    vocab: data.vocab,
    steps: flags.steps ?? (flags.seconds ? 1 : undefined),
    seed: flags.seed,
  });
  applySettings(config, flags.set);
  if (flags.seconds) config.steps = await stepsForSeconds(parseTrainConfig(config), flags.seconds);
  return createRun(out, config, flags.resume ?? false);
}

/** A run folder with the full, checked config. */
export async function createRun(out: string, input: TrainConfigInput, resume: boolean): Promise<RunFolder> {
  const config = parseTrainConfig(input);
  refuseWhatDoesNotFit(accountFor(config), config.device);
  return RunFolder.create(out, config as unknown as JsonObject, { resume });
}

/** Trains with the live view; Ctrl-C saves and stops. Reports are written at the end. */
export async function trainWithView(output: Output, run: RunFolder, options: { resume: boolean; closing?: boolean }) {
  const stop = new AbortController();
  const interrupt = (): void => {
    if (stop.signal.aborted) process.exit(130); // a second Ctrl-C does not wait
    stop.abort();
  };
  process.on('SIGINT', interrupt);
  process.on('SIGTERM', interrupt);
  const view = new LiveView(output, { title: run.name, footer: 'Ctrl-C saves and stops' });
  try {
    const summary = await train(run, { resume: options.resume, signal: stop.signal, onEvent: (e) => view.add(e) });
    view.close();
    const { json: report } = await writeReport(run);
    if (options.closing !== false) {
      const next =
        summary.status === 'stopped'
          ? `ansatz train ${run.path} --resume`
          : `ansatz generate ${run.path} --prompt "..."`;
      output.result('train', { run: run.path, ...summary, report }, [
        `${summary.status}: ${run.path}`,
        `next: ${next}`,
      ]);
    }
    return summary;
  } catch (error) {
    view.close();
    if (error instanceof AnsatzError && !error.hint)
      throw new AnsatzError(error.message, {
        hint: `the run folder ${run.path} is as it was at its last checkpoint`,
        cause: error,
      });
    throw error;
  } finally {
    process.off('SIGINT', interrupt);
    process.off('SIGTERM', interrupt);
  }
}
