/** ansatz prune: a run with weights taken out of its matrices. */
import { Command, Option } from 'commander';
import { action, number, type OutputFlags } from '../common.ts';
import { type CompressFlags, compressOptions } from './compress.ts';

export interface PruneFlags extends OutputFlags, CompressFlags {
  method: 'magnitude' | 'wanda' | 'sparsegpt';
  sparsity?: number;
  pattern?: string;
  damp: number;
}

export function pruneCommand(): Command {
  const command = new Command('prune')
    .description('Take weights out of the matrices of a run: a new run, with its held-out loss, bytes and speed.')
    .argument('<run>', 'run folder')
    .addOption(
      new Option(
        '--method <name>',
        'magnitude: the smallest; wanda: the smallest times the strength of their input; sparsegpt: with the others making up for it',
      )
        .choices(['magnitude', 'wanda', 'sparsegpt'])
        .default('wanda'),
    )
    .option(
      '--sparsity <share>',
      'share of the weights to take out (default: 0.5)',
      number('--sparsity', (n) => n > 0 && n < 1),
    )
    .option('--pattern <n:m>', 'n weights are left of every m in a row, as 2:4')
    .option(
      '--damp <share>',
      'sparsegpt: share of the mean of the diagonal that is added to it',
      number('--damp', (n) => n > 0 && n < 1),
      0.01,
    );
  compressOptions(command, 'wanda and sparsegpt').addHelpText(
    'after',
    '\nExamples:\n  ansatz prune runs/tiny --method wanda --sparsity 0.5\n  ansatz prune runs/tiny --method sparsegpt --pattern 2:4 --out runs/tiny-2of4\n  ansatz prune runs/tiny --method magnitude --sparsity 0.3 --json\n\nWhat is done, and what it costs: docs/compress.md.',
  );
  return action(command, async (output, run: string, flags: PruneFlags) => {
    const { runPrune } = await import('../actions/prune.ts');
    await runPrune(output, run, flags);
  });
}
