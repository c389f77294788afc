/** What `ansatz generate` does. */
import { readFileSync } from 'node:fs';
import { AnsatzError } from '../../backend/errors.ts';
import { chatFiles } from '../../infer/formats/chat-files.ts';
import { Generator } from '../../infer/generate.ts';
import { type JsonSchema, schemaGrammar } from '../../infer/grammar/index.ts';
import { chooseCheckpoint as choose, runTokenizer } from '../../infer/load.ts';
import { parseTrainConfig } from '../../train/config.ts';
import { objectiveOf } from '../../train/objective.ts';
import type { Checkpoint } from '../../train/run/checkpoint.ts';
import { RunFolder } from '../../train/run/folder.ts';
import { loadModel } from '../../train/session.ts';
import type { GenerateFlags } from '../commands/generate.ts';
import { quoted } from '../invocation.ts';
import { printable } from '../term/format.ts';
import type { Output } from '../term/output.ts';

export { runTokenizer };

export async function runGenerate(output: Output, path: string, flags: GenerateFlags): Promise<void> {
  const run = RunFolder.open(path);
  const schema = flags.schema === undefined ? undefined : readSchema(flags.schema);
  const checkpoint = await chooseCheckpoint(output, run, path, flags);
  const config = parseTrainConfig(run.config);
  const tokenizer = runTokenizer(run, config.data.folder, checkpoint);
  const { device, model, params } = await loadModel(config, checkpoint);
  const generator = new Generator(device, model, params, tokenizer, config.precision, objectiveOf(config));
  const { maxTokens, temperature, topK, topP, minP, seed, context, mode, specials, stop } = flags;
  const { presencePenalty, frequencyPenalty, repetitionPenalty } = flags;
  const options = {
    ...{ maxTokens, temperature, topK, topP, minP, seed },
    ...{ presencePenalty, frequencyPenalty, repetitionPenalty },
    ...(stop ? { stop } : {}),
    ...(schema === undefined ? {} : { schema }),
    ...(context === undefined ? {} : { context }),
    ...(mode ? { mode } : {}),
    ...(specials ? { specials } : {}),
  };
  // What an imported model ends its texts or answers with.
  const { ends } = chatFiles(run.path);
  if (output.mode === 'json') {
    const started = performance.now();
    const completion = await generator.complete(flags.prompt, { ...options, ends });
    const ms = performance.now() - started;
    const fields = { run: path, step: checkpoint.step, prompt: flags.prompt, completion, ...options, ms };
    output.result('generate', fields, '');
  } else {
    // A pipe gets the text as it is; a terminal must not obey control characters that a model makes up.
    const shown = (text: string): string =>
      output.mode === 'tty' ? printable(text, { unicode: output.unicode }) : text;
    process.stdout.write(output.style.dim(shown(flags.prompt)));
    try {
      for await (const piece of generator.stream(flags.prompt, { ...options, ends }))
        process.stdout.write(shown(piece));
    } finally {
      process.stdout.write('\n'); // an error is a line of its own
    }
  }
  await generator.dispose();
}

/** A schema that can be promised: said before a model is loaded. */
function readSchema(path: string): JsonSchema {
  let schema: JsonSchema;
  try {
    schema = JSON.parse(readFileSync(path, 'utf8'));
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    const why =
      code === 'ENOENT' ? 'there is no such file' : code ? `cannot be read (${code})` : `is not JSON: ${message}`;
    throw new AnsatzError(`--schema ${path}: ${why}`, { hint: 'give a .json file with a JSON Schema', cause });
  }
  schemaGrammar(schema);
  return schema;
}

/** The checkpoint of a step, or the newest that is usable. */
export const chooseCheckpoint = (
  output: Output,
  run: RunFolder,
  path: string,
  { step, verify }: { readonly step?: number; readonly verify?: boolean },
): Promise<Checkpoint> =>
  choose(run, path, { step, verify, warn: (m) => output.warn(m), resume: `ansatz train ${quoted(path)} --resume` });
