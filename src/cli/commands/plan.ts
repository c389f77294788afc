/** ansatz plan: what a model would take, from shapes alone. */
import { Command } from 'commander';
import { action, number, type OutputFlags, repeated } from '../common.ts';

export interface PlanFlags extends OutputFlags {
  spec?: string;
  batch?: number;
  set?: string[];
}

export function planCommand(): Command {
  const command = new Command('plan')
    .description('Account for a recipe or a model spec of any size: parameters, compute, memory. Computes nothing.')
    .argument('[recipe]', 'a recipe, or the path of one')
    .option('--spec <file>', 'a JSON file with a ModelSpec (docs/spec.md), or the JSON itself')
    .option(
      '--batch <n>',
      'rows of a step',
      number('--batch', (n) => Number.isInteger(n) && n > 0),
    )
    .addOption(repeated('--set <field=value>', 'change a field of the config; repeatable'))
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz plan gpt2-124m\n  ansatz plan tiny --set model.width=4096 --set model.depth=64 --json\n  ansatz plan --spec spec.json --batch 1',
    );
  return action(command, async (output, recipe: string | undefined, flags: PlanFlags) => {
    const { runPlan } = await import('../actions/plan.ts');
    await runPlan(output, recipe, flags);
  });
}
