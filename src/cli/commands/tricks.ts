/** ansatz tricks: the hypotheses, what each changes and what it costs. */
import { Command } from 'commander';
import { action, number, type OutputFlags } from '../common.ts';

interface Flags extends OutputFlags {
  width: number;
  depth: number;
}

export function tricksCommand(): Command {
  // Every block of every trick is built: a thousand blocks take seconds.
  const whole =
    (most: number) =>
    (n: number): boolean =>
      Number.isInteger(n) && n > 0 && n <= most;
  const command = new Command('tricks')
    .description('List the hypotheses, or show one: what it claims, how to switch it on, what it costs.')
    .argument('[name]', 'a trick')
    .option('--width <n>', 'width of the base decoder that costs are compared with', number('--width', whole(1e6)), 256)
    .option('--depth <n>', 'its number of blocks, 256 at most', number('--depth', whole(256)), 6)
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz tricks\n  ansatz tricks moe\n  ansatz tricks moe --width 1024 --depth 24 --json',
    );
  return action(command, async (output, name: string | undefined, flags: Flags) => {
    const { runTricks } = await import('../actions/tricks.ts');
    await runTricks(output, name, flags);
  });
}
