/** ansatz mup: whether a parametrisation holds - the coordinate check, and the transfer of learning rates. */
import { Command, Option } from 'commander';
import { action, number, type OutputFlags, repeated } from '../common.ts';
import { UsageError } from '../term/output.ts';

export interface MupFlags extends OutputFlags {
  widths?: number[];
  depths?: number[];
  seeds: number;
  steps: number;
  set?: string[];
  grow: 'heads' | 'headWidth';
  growField?: string[];
  svg?: string;
}
export interface CheckFlags extends MupFlags {
  lr?: number;
}
export interface TransferFlags extends MupFlags {
  rates?: number[];
  limit: number;
  data?: string;
}

const whole = (n: number): boolean => Number.isInteger(n) && n > 0;

/** A comma-separated list of different numbers, two or more. */
const list = (what: string, test: (n: number) => boolean) => (text: string) => {
  const values = text.split(',').map(Number);
  if (new Set(values).size < Math.max(2, values.length) || !values.every((n) => Number.isFinite(n) && test(n)))
    throw new UsageError(`${what} wants two or more different numbers with commas, not '${text}'`);
  return values;
};

const common = (command: Command, seeds: number, steps: number): Command =>
  command
    .argument('[recipe]', 'a recipe, or the path of one; by default a small decoder')
    .option('--widths <list>', 'widths to compare', list('--widths', whole))
    .addOption(
      new Option('--depths <list>', 'depths to compare, instead of widths')
        .argParser(list('--depths', whole))
        .conflicts('widths'),
    )
    .option('--seeds <n>', 'runs of each', number('--seeds', whole), seeds)
    .option('--steps <n>', 'training steps of each', number('--steps', whole), steps)
    .addOption(new Option('--grow <what>', 'what attention grows by').choices(['heads', 'headWidth']).default('heads'))
    .addOption(repeated('--grow-field <field>', 'a further field of the model that grows with width; repeatable'))
    .addOption(repeated('--set <field=value>', 'change a field of the config; repeatable'))
    .option('--svg <file>', 'draw the result into a file');

export function mupCommand(): Command {
  const check = common(new Command('check'), 3, 5)
    .description('Coordinate check: do activations, and their changes in training, keep their size with width?')
    .option('--lr <rate>', 'learning rate; by default that of the config', number('--lr'))
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz mup check\n  ansatz mup check --set model.parametrisation=standard\n  ansatz mup check --depths 2,4,8,16 --set model.parametrisation.baseDepth=2\n  ansatz mup check tiny --widths 256,512,1024 --svg check.svg --json',
    );
  action(check, async (output, recipe: string | undefined, flags: CheckFlags) => {
    const { runCheck } = await import('../actions/mup.ts');
    await runCheck(output, recipe, flags);
  });
  const transfer = common(new Command('transfer'), 1, 200)
    .description('Sweep learning rates at several widths: does the best one stay where it was?')
    .option(
      '--rates <list>',
      'learning rates; by default 7, a factor of 2 apart',
      list('--rates', (n) => n > 0),
    )
    .option('--limit <octaves>', 'how far the best rate may move', number('--limit'), 0.5)
    .option('--data <folder>', 'prepared data to train on; by default a made-up language')
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz mup transfer\n  ansatz mup transfer --set model.parametrisation=standard\n  ansatz mup transfer tiny --data data/notes --widths 256,512 --seeds 3 --json',
    );
  action(transfer, async (output, recipe: string | undefined, flags: TransferFlags) => {
    const { runTransfer } = await import('../actions/mup.ts');
    await runTransfer(output, recipe, flags);
  });
  return new Command('mup')
    .description('Check that what is tuned on a small model holds on larger ones.')
    .helpCommand(false)
    .addCommand(check)
    .addCommand(transfer)
    .addHelpText('after', '\nExamples:\n  ansatz mup check\n  ansatz mup transfer --help');
}
