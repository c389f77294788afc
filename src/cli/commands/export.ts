/** ansatz export: a run's weights in a format that other programs read. */
import { Command, Option } from 'commander';
import { action, number, type OutputFlags } from '../common.ts';

export interface ExportFlags extends OutputFlags {
  to: 'gguf' | 'hf';
  out?: string;
  type?: 'f32' | 'f16' | 'bf16' | 'q8_0' | 'q4_0';
  step?: number;
  verify?: boolean;
}

export function exportCommand(): Command {
  const command = new Command('export')
    .description('Write a run for other programs: a GGUF file (llama.cpp) or a Hugging Face folder (transformers).')
    .argument('<run>', 'run folder')
    .addOption(new Option('--to <format>', 'format').choices(['gguf', 'hf']).makeOptionMandatory())
    .option('--out <path>', 'where it goes; by default beside the run')
    .addOption(
      new Option(
        '--type <type>',
        'type of the weights; by default f32 for Hugging Face, f16 in GGUF, q8_0 there for quantised runs',
      ).choices([...['f32', 'f16', 'bf16', 'q8_0', 'q4_0']]),
    )
    .option(
      '--step <n>',
      'checkpoint to use; by default the newest',
      number('--step', (n) => Number.isInteger(n) && n >= 0),
    )
    .option('--verify', 'read all weights for their checksums, also where they were found right before')
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz export runs/tiny --to gguf --type q8_0\n  ansatz export runs/tiny --to hf --out tiny-hf --json\n\nWhat can be said in these formats: docs/export.md.',
    );
  return action(command, async (output, run: string, flags: ExportFlags) => {
    const { runExport } = await import('../actions/export.ts');
    await runExport(output, run, flags);
  });
}
