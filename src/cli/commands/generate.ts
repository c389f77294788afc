/** ansatz generate: text from a trained run. */
import { Command } from 'commander';
import { action, number, type OutputFlags, repeated } from '../common.ts';

export interface GenerateFlags extends OutputFlags {
  prompt: string;
  maxTokens: number;
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  presencePenalty: number;
  frequencyPenalty: number;
  repetitionPenalty: number;
  stop?: string[];
  schema?: string;
  seed: number;
  step?: number;
  verify?: boolean;
  context?: string;
  mode?: string;
  specials?: boolean;
}

export function generateCommand(): Command {
  const whole = (n: number): boolean => Number.isInteger(n) && n >= 0;
  const command = new Command('generate')
    .description('Continue a prompt with a trained run.')
    .argument('<run>', 'run folder')
    .option('--prompt <text>', 'what to continue', '')
    .option('--context <text>', 'text to read first: by the encoder, if the model has one')
    .option('--specials', 'names of special tokens in the prompt stand for them: <|s_0|> is a hole')
    .option('--mode <name>', 'mode of a model trained with objective ul2: R, S or X')
    .option(
      '--max-tokens <n>',
      'stop after this many tokens',
      number('--max-tokens', (n) => Number.isInteger(n) && n > 0),
      128,
    )
    .option(
      '--temperature <t>',
      '0 takes the most likely token',
      number('--temperature', (n) => n >= 0),
      0.8,
    )
    .option('--top-k <n>', 'choose among the n most likely tokens; 0: all', number('--top-k', whole), 40)
    .option(
      '--top-p <p>',
      'choose among the most likely tokens that reach this probability',
      number('--top-p', (n) => n > 0 && n <= 1),
      1,
    )
    .option(
      '--min-p <p>',
      'choose among tokens at least this share as likely as the likeliest',
      number('--min-p', (n) => n >= 0 && n <= 1),
      0,
    )
    .option(
      '--presence-penalty <x>',
      'taken off the logit of every token that the text has already',
      number('--presence-penalty', Number.isFinite),
      0,
    )
    .option(
      '--frequency-penalty <x>',
      'the same, once for every time',
      number('--frequency-penalty', Number.isFinite),
      0,
    )
    .option(
      '--repetition-penalty <x>',
      'divides positive logits of tokens in prompt or text, multiplies negative ones',
      number('--repetition-penalty'),
      1,
    )
    .addOption(repeated('--stop <text>', 'end before this text; repeatable'))
    .option('--schema <file>', 'write JSON that is valid under the JSON Schema in this file')
    .option('--seed <n>', 'same seed, same text', number('--seed', whole), 0)
    .option('--step <n>', 'checkpoint to use; by default the newest', number('--step', whole))
    .option('--verify', 'read all weights for their checksums, also where they were found right before')
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz generate runs/quickstart --prompt "export function "\n  ansatz generate runs/quickstart --prompt "# Usage" --temperature 0 --json',
    );
  return action(command, async (output, run: string, flags: GenerateFlags) => {
    const { runGenerate } = await import('../actions/generate.ts');
    await runGenerate(output, run, flags);
  });
}
