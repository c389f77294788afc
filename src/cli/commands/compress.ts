/** Options of the commands that make a run out of another one's weights. */
import type { Command } from 'commander';
import { number } from '../common.ts';

export interface CompressFlags {
  calibrate?: number;
  out?: string;
  data?: string;
  maxTokens?: number;
  seconds: number;
  step?: number;
}

/** `who`: the methods that calibrate. */
export function compressOptions(command: Command, who: string): Command {
  const whole = (n: number): boolean => Number.isInteger(n) && n > 0;
  return command
    .option(
      '--calibrate <tokens>',
      `${who}: tokens of training text to calibrate with (default: 32768)`,
      number('--calibrate', whole),
    )
    .option('--out <folder>', 'the new run; by default beside the old one')
    .option('--data <folder>', 'prepared data, if not where the run was trained')
    .option('--max-tokens <n>', 'use the first tokens of the held-out text only', number('--max-tokens', whole))
    .option(
      '--seconds <s>',
      'how long to measure decoding of each; 0 does not',
      number('--seconds', (n) => n >= 0),
      4,
    )
    .option(
      '--step <n>',
      'checkpoint to use; by default the newest',
      number('--step', (n) => Number.isInteger(n) && n >= 0),
    );
}
