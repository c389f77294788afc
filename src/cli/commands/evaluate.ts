/** ansatz evaluate: held-out loss of a run, also by position and past the length it was trained at. */
import { Command, Option } from 'commander';
import { action, number, type OutputFlags } from '../common.ts';
import { UsageError } from '../term/output.ts';

const FORMATS = ['f32', 'bf16', 'f16', 'int8'] as const;

export interface EvaluateFlags extends OutputFlags {
  objective?: boolean;
  byPosition?: boolean;
  length?: number;
  scaling?: 'linear' | 'ntk' | 'yarn';
  blockwise?: boolean;
  crossDocuments?: boolean;
  cache?: (typeof FORMATS)[number][];
  maxTokens?: number;
  data?: string;
  step?: number;
  verify?: boolean;
}

export function evaluateCommand(): Command {
  const whole = (n: number): boolean => Number.isInteger(n) && n > 0;
  const command = new Command('evaluate')
    .description('Held-out loss of a run; by position, it shows what happens past the training length.')
    .argument('<run>', 'run folder')
    .option('--objective', "also the loss of the run's own objective (prefix-lm, ul2, ...) on held-out rows")
    .option('--by-position', 'loss by position in the document (or in the row, with --cross-documents)')
    .option('--length <n>', 'tokens of a row; by default as in training', number('--length', whole))
    .addOption(
      new Option('--scaling <method>', 'scale rotary positions to --length').choices(['linear', 'ntk', 'yarn']),
    )
    .option('--blockwise', 'blockwise causal attention, blocks of half the training length')
    .option('--cross-documents', 'let rows run across documents: long rows of short texts')
    .addOption(
      new Option(
        '--cache <format>',
        `also the loss with keys and values cached as ${FORMATS.join(', ')}; can be repeated`,
      ).argParser((text: string, all: string[] = []) => {
        if (!FORMATS.some((f) => f === text))
          throw new UsageError(`--cache cannot be '${text}'`, { hint: `choose from ${FORMATS.join(', ')}` });
        return [...all, text];
      }),
    )
    .option('--max-tokens <n>', 'use the first tokens only', number('--max-tokens', whole))
    .option('--data <folder>', 'prepared data, if not where the run was trained')
    .option(
      '--step <n>',
      'checkpoint to use; by default the newest',
      number('--step', (n) => Number.isInteger(n) && n >= 0),
    )
    .option('--verify', 'read all weights for their checksums, also where they were found right before')
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz evaluate runs/tiny\n  ansatz evaluate runs/ul2 --objective\n  ansatz evaluate runs/tiny --cache f32 --cache int8\n  ansatz evaluate runs/tiny --by-position --length 1024\n  ansatz evaluate runs/tiny --by-position --length 1024 --scaling yarn --json',
    );
  return action(command, async (output, run: string, flags: EvaluateFlags) => {
    const { runEvaluate } = await import('../actions/evaluate.ts');
    await runEvaluate(output, run, flags);
  });
}
