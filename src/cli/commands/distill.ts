/** ansatz distill: a smaller model trained on a run's distributions. */
import { Command, Option } from 'commander';
import { action, number, type OutputFlags, recipeNames, repeated } from '../common.ts';

export interface DistillFlags extends OutputFlags {
  config?: string;
  data?: string;
  out?: string;
  steps?: number;
  seconds?: number;
  seed?: number;
  set?: string[];
  lambda: number;
  temperature: number;
  start: 'fresh' | 'layers';
  maxTokens?: number;
  measure: number;
}

export function distillCommand(): Command {
  const whole = (n: number): boolean => Number.isInteger(n) && n > 0;
  const command = new Command('distill')
    .description("Train a student on a run's distributions beside the text, and compare both.")
    .argument('<teacher>', 'run folder')
    .argument(
      '[recipe]',
      `the student: a recipe (${recipeNames().join(', ')}), a .ts or .json file; by default the teacher's own config, to be changed with --set`,
    )
    .option('--config <file>', 'the student as a .json file of a run config, instead of a recipe')
    .option('--data <folder>', 'a folder of text, or one that `ansatz prepare` made; by default what the teacher read')
    .option('--out <folder>', 'run folder of the student; by default beside the teacher')
    .option('--steps <n>', 'optimiser steps', number('--steps', whole))
    .option('--seconds <s>', 'as many steps as fit, by measuring first', number('--seconds'))
    .option(
      '--seed <n>',
      'random seed',
      number('--seed', (n) => Number.isInteger(n) && n >= 0),
    )
    .addOption(repeated('--set <field=value>', 'change a field of the config; repeatable'))
    .option(
      '--lambda <share>',
      "share of the teacher's distribution in the loss; the text gets the rest",
      number('--lambda', (n) => n >= 0 && n <= 1),
      0.5,
    )
    .option('--temperature <t>', 'temperature of both distributions', number('--temperature'), 2)
    .addOption(
      new Option('--start <how>', "fresh weights, or the teacher's layers at even distances (same widths)")
        .choices(['fresh', 'layers'])
        .default('fresh'),
    )
    .option('--max-tokens <n>', 'compare on the first tokens of the held-out text only', number('--max-tokens', whole))
    .option(
      '--measure <s>',
      'seconds to measure decoding of each; 0 does not',
      number('--measure', (n) => n >= 0),
      4,
    )
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz distill runs/tiny --set model.depth=3 --start layers --seconds 300\n  ansatz distill runs/large tiny --lambda 0.7 --temperature 2 --out runs/student\n  ansatz distill runs/large --config student.json --json\n\nA student that was stopped goes on with `ansatz train STUDENT --resume`. More: docs/compress.md.',
    );
  return action(command, async (output, teacher: string, recipe: string | undefined, flags: DistillFlags) => {
    const { runDistill } = await import('../actions/distill.ts');
    await runDistill(output, teacher, recipe, flags);
  });
}
