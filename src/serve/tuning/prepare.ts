/** A job's examples as a data folder that a run can train on, and the run's config. */
import { existsSync } from 'node:fs';
import { mkdir, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { createPacking } from '../../data/packing.ts';
import { tokenizerHash } from '../../data/prepare.ts';
import { openTokens } from '../../data/shards.ts';
import { writeShards } from '../../data/shards-write.ts';
import { Tokenizer } from '../../data/tokenizer/index.ts';
import { startOf } from '../../infer/prompt.ts';
import { layoutTraits } from '../../model/model.ts';
import type { ObjectiveConfig } from '../../objectives/index.ts';
import { parseTrainConfig, type TrainConfigInput } from '../../train/config.ts';
import { RunFolder } from '../../train/run/folder.ts';
import { chatTemplate } from '../models/chat-template.ts';
import { type Dataset, marksOf, readDataset, storedVocab } from './dataset.ts';
import type { JobSpec } from './job.ts';

/** Why a job cannot be trained, in its customer's words. */
export class InvalidFile extends Error {
  readonly param: string;
  constructor(param: string, message: string) {
    super(message);
    this.param = param;
  }
}

export interface Prepared {
  readonly config: TrainConfigInput;
  readonly examples: number;
  /** Tokens that are read in one pass over them. */
  readonly tokens: number;
  readonly answers: number;
  readonly validation: boolean;
  readonly epochs: number;
  readonly batch: number;
  readonly multiplier: number;
  readonly warnings: readonly string[];
}

/** Rows are no longer than this, whatever the context: examples rarely are. */
const LONGEST_ROW = 2048;
/** Training examples that stand in for held-out ones where a customer gave none. */
const STAND_INS = 32;

/** @throws InvalidFile when lines are wrong. */
export async function prepareJob(folder: string, spec: JobSpec): Promise<Prepared> {
  const base = RunFolder.open(spec.base);
  const config = parseTrainConfig(base.config);
  const own = join(base.path, 'tokenizer.json');
  const tokenizer = Tokenizer.fromFile(existsSync(own) ? own : join(config.data.folder, 'tokenizer.json'));
  const template = chatTemplate(tokenizer, base.path);
  const reads = layoutTraits(config.model).encoder === true;
  const length = Math.min(config.length ?? config.model.context, LONGEST_ROW);
  const [first, ...before] = startOf(tokenizer);
  const read = async (name: 'training' | 'validation'): Promise<Dataset> => {
    const bytes = await readFile(join(folder, `${name}.jsonl`));
    const data = readDataset(bytes, { tokenizer, template, reads, length, before: reads ? [] : before });
    const param = `${name}_file`;
    if (data.errors.length > 0) {
      const shown = data.errors.slice(0, 5).map((e) => `line ${e.line}: ${e.message}`);
      const more = data.errors.length - shown.length;
      throw new InvalidFile(
        param,
        `The ${name} file has errors. ${shown.join('; ')}${more > 0 ? `; and ${more} more` : ''}`,
      );
    }
    if (data.examples.length === 0) throw new InvalidFile(param, `The ${name} file has no examples.`);
    return data;
  };
  const training = await read('training');
  const validation = spec.validation ? await read('validation') : null;
  const data = join(folder, 'data');
  await writeData(
    data,
    tokenizer,
    training,
    validation ?? { examples: training.examples.slice(0, STAND_INS), errors: [] },
  );

  const tokens = openTokens(data, 'train', { tokenizerHash: tokenizerHash(tokenizer) });
  const rows = createPacking(tokens, { length, mode: 'whole', seed: spec.seed }).rows;
  tokens.close();
  const { batch, epochs, multiplier } = hyperparameters(spec, training.examples.length, rows);
  const steps = Math.max(1, Math.ceil((epochs * rows) / batch));
  const old = config.objective as ObjectiveConfig & { base?: ObjectiveConfig };
  const trained: TrainConfigInput = {
    name: spec.name,
    seed: spec.seed,
    device: config.device,
    precision: config.precision,
    model: config.model,
    data: { folder: data, packing: 'whole' },
    objective: {
      kind: 'supervised',
      marks: marksOf(tokenizer),
      start: first,
      ...(reads && { base: old.kind === 'supervised' ? old.base : old }),
    },
    from: base.path,
    ...(spec.adapter && { adapter: spec.adapter }),
    batch,
    length,
    steps,
    optimiser: { kind: 'adamw', lr: multiplier * usualRate(config.model.width, spec.adapter !== null), decay: 0 },
    schedule: { kind: 'cosine', warmup: Math.min(0.1, 10 / steps), floor: 0.1 },
    evaluate: { every: validation ? Math.max(1, Math.ceil(steps / epochs)) : 0 },
    checkpoint: { every: Math.min(50, Math.max(1, Math.ceil(steps / 10))), keepLast: 3 },
  };
  const sum = (of: (e: Dataset['examples'][number]) => number): number =>
    training.examples.reduce((n, e) => n + of(e), 0);
  const cut = training.examples.filter((e) => e.cut).length;
  return {
    config: trained,
    examples: training.examples.length,
    tokens: sum((e) => e.tokens),
    answers: sum((e) => e.answers),
    validation: validation !== null,
    ...{ epochs, batch, multiplier },
    warnings: cut > 0 ? [`${cut} examples are longer than ${length} tokens: their ends were left out.`] : [],
  };
}

/** Rates that suit narrow and wide models alike fall with the width; a difference of low rank takes larger ones. */
const usualRate = (width: number, adapter: boolean): number =>
  adapter ? Math.min(1e-2, 0.5 / width) : Math.min(1e-3, 0.05 / width);

function hyperparameters(
  spec: JobSpec,
  examples: number,
  rows: number,
): { batch: number; epochs: number; multiplier: number } {
  const { batch_size: size, n_epochs: n, learning_rate_multiplier: rate } = spec.hyperparameters;
  // A batch counts examples; a row holds several.
  const perRow = Math.max(1, examples / rows);
  const batch = size === 'auto' ? Math.ceil(rows / 16) : Math.round(size / perRow);
  return {
    batch: Math.max(1, Math.min(size === 'auto' ? 8 : 256, rows, batch)),
    epochs: n === 'auto' ? Math.max(3, Math.min(10, Math.ceil(300 / examples))) : n,
    multiplier: rate === 'auto' ? 1 : rate,
  };
}

/** Written beside, then renamed: a folder of that name is whole. */
async function writeData(folder: string, tokenizer: Tokenizer, train: Dataset, heldout: Dataset): Promise<void> {
  if (existsSync(folder)) return;
  const draft = `${folder}.${process.pid}.tmp`;
  await rm(draft, { recursive: true, force: true });
  await mkdir(draft, { recursive: true });
  tokenizer.save(join(draft, 'tokenizer.json'));
  for (const [name, data] of [
    ['train', train],
    ['heldout', heldout],
  ] as const) {
    const ids = new Map(data.examples.map((e): [Uint8Array, Int32Array] => [e.text, e.ids]));
    const encoder = {
      vocabSize: storedVocab(tokenizer),
      eot: tokenizer.eot,
      encodeBatch: (texts: Uint8Array[]) => texts.map((t) => ids.get(t)!),
    };
    const documents = data.examples.map(({ text }, k) => ({ text, source: `${name}:${k + 1}` }));
    await writeShards(documents, encoder, { folder: draft, name, tokenizerHash: tokenizerHash(tokenizer) });
  }
  await rename(draft, folder);
}
