/** ansatz quantize: a run with its matrices in 8 or 4 bits. */
import { Command, Option } from 'commander';
import { action, number, type OutputFlags } from '../common.ts';
import type { CompressFlags } from './compress.ts';
import { compressOptions } from './compress.ts';

export interface QuantizeFlags extends OutputFlags, CompressFlags {
  bits: '8' | '4';
  embeddingBits: '8' | '4';
  method?: 'rtn' | 'gptq';
  damp: number;
}

export function quantizeCommand(): Command {
  const command = new Command('quantize')
    .description('Put the matrices of a run into 8 or 4 bits: a new run, with its held-out loss, bytes and speed.')
    .argument('<run>', 'run folder')
    .addOption(new Option('--bits <n>', 'bits of a weight').choices(['8', '4']).makeOptionMandatory())
    .addOption(
      new Option(
        '--method <name>',
        'rtn rounds to nearest; gptq also makes up for the errors on calibration text (by default with 4 bits)',
      ).choices(['rtn', 'gptq']),
    )
    .addOption(
      new Option('--embedding-bits <n>', 'bits of embeddings and the output matrix').choices(['8', '4']).default('8'),
    )
    .option(
      '--damp <share>',
      'gptq: share of the mean of the diagonal that is added to it',
      number('--damp', (n) => n > 0 && n < 1),
      0.01,
    );
  compressOptions(command, 'gptq').addHelpText(
    'after',
    '\nExamples:\n  ansatz quantize runs/tiny --bits 8\n  ansatz quantize runs/tiny --bits 4 --calibrate 65536 --out runs/tiny-4bit\n  ansatz quantize runs/tiny --bits 4 --method rtn --json\n\nWhat is done, and what it costs: docs/compress.md.',
  );
  return action(command, async (output, run: string, flags: QuantizeFlags) => {
    const { runQuantize } = await import('../actions/quantize.ts');
    await runQuantize(output, run, flags);
  });
}
