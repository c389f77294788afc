/** ansatz inspect: the device and its kernels; with a recipe, what it costs and whether it fits. */
import { Command } from 'commander';
import { action, type OutputFlags, repeated } from '../common.ts';

interface Flags extends OutputFlags {
  set?: string[];
}

export function inspectCommand(): Command {
  const command = new Command('inspect')
    .description('Show the device and its kernels; with a recipe, what it costs and whether it fits.')
    .argument('[recipe]', 'a recipe, or the path of one')
    .addOption(repeated('--set <field=value>', 'change a field of the recipe; repeatable'))
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz inspect\n  ansatz inspect tiny\n  ansatz inspect gpt2-124m --set batch=1 --json',
    );
  return action(command, async (output, recipe: string | undefined, flags: Flags) => {
    const { runInspect } = await import('../actions/inspect.ts');
    await runInspect(output, recipe, flags.set);
  });
}
