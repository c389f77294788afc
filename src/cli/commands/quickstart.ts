/** ansatz quickstart: real text to a trained model that writes, in about two minutes. */
import { Command } from 'commander';
import { action, number, type OutputFlags } from '../common.ts';

export interface QuickstartFlags extends OutputFlags {
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
  return action(command, async (output, flags: QuickstartFlags) => {
    const { runQuickstart } = await import('../actions/quickstart.ts');
    await runQuickstart(output, flags);
  });
}
