/** ansatz train: a recipe on data, or a run that goes on. */
import { Command } from 'commander';
import { action, number, type OutputFlags, recipeNames, repeated } from '../common.ts';

export interface TrainFlags extends OutputFlags {
  data?: string;
  out?: string;
  steps?: number;
  seconds?: number;
  seed?: number;
  set?: string[];
  from?: string;
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
    .addOption(repeated('--set <field=value>', 'change a field of the config; repeatable'))
    .option('--from <run>', 'start from the newest weights of another run of the same model')
    .option('--resume', 'continue from the newest checkpoint')
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz train tiny --data ~/notes --seconds 300\n  ansatz train tiny --data data/notes --set optimiser.lr=0.002 --set model.depth=8\n  ansatz train runs/tiny --resume\n  ansatz train my-recipe.ts --data data/notes --json',
    );
  return action(command, async (output, recipe: string, flags: TrainFlags) => {
    const { runTrain } = await import('../actions/train.ts');
    await runTrain(output, recipe, flags);
  });
}
