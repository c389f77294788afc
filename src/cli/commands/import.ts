/** ansatz import: a run from a Hugging Face folder. */
import { Command } from 'commander';
import { action, number, type OutputFlags } from '../common.ts';

export interface ImportFlags extends OutputFlags {
  out: string;
  context?: number;
}

export function importCommand(): Command {
  const command = new Command('import')
    .description('Make a run from a Hugging Face folder: config.json, tokenizer.json and safetensors files.')
    .argument('<folder>', 'folder of a Llama, Mistral, Qwen2, Mixtral or T5 model')
    .requiredOption('--out <run>', 'folder of the new run')
    .option(
      '--context <n>',
      'longest sequence; by default what the model was made for',
      number('--context', (n) => Number.isInteger(n) && n > 0),
    )
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz import downloads/Qwen2.5-0.5B --out runs/qwen --context 4096\n  ansatz import tiny-hf --out runs/again --json',
    );
  return action(command, async (output, folder: string, flags: ImportFlags) => {
    const { runImport } = await import('../actions/import.ts');
    await runImport(output, folder, flags);
  });
}
