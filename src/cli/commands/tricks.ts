/** ansatz tricks: the hypotheses, what each changes and what it costs. */
import { Command } from 'commander';
import { action, number, type OutputFlags } from '../common.ts';

interface Flags extends OutputFlags {
  width: number;
  depth: number;
}

export function tricksCommand(): Command {
  const whole = (n: number): boolean => Number.isInteger(n) && n > 0;
  const command = new Command('tricks')
    .description('List the hypotheses, or show one: what it claims, how to switch it on, what it costs.')
    .argument('[name]', 'a trick')
    .option('--width <n>', 'width of the base decoder that costs are compared with', number('--width', whole), 256)
    .option('--depth <n>', 'its number of blocks', number('--depth', whole), 6)
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz tricks\n  ansatz tricks moe\n  ansatz tricks moe --width 1024 --depth 24 --json',
    );
  return action(command, async (output, name: string | undefined, flags: Flags) => {
    const { runTricks } = await import('../actions/tricks.ts');
    await runTricks(output, name, flags);
  });
}
