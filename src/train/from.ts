/**
 * Starting a run from another run's weights: the same model, one with more tokens, one with more parts, or one with
 * stacks of layers (experts) where the other has a single layer.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { HostArray } from '../backend/dtype.ts';
import { AnsatzError } from '../backend/errors.ts';
import { Tokenizer } from '../data/tokenizer/index.ts';
import type { Model } from '../model/model.ts';
import { singleOf, singleShape, stacked } from '../nn/index.ts';
import { baseNoteOf } from './base.ts';
import { adapterSchema, withDifferences } from './lora.ts';
import type { TrainedParam } from './optimisers/index.ts';
import { latestCheckpoint } from './run/checkpoint.ts';
import { RunFolder } from './run/folder.ts';
import { refuseQuantised } from './stored.ts';

export interface StartReport {
  readonly checkpoint: string;
  readonly step: number;
  /** Parameters that got the other run's values, and those of them that have new rows too. */
  readonly copied: number;
  readonly grown: readonly string[];
  /** Those of them whose layers are all copies of a single one of the other run. */
  readonly stacked: readonly string[];
  /** Why the model is another function than the other run's although weights were copied. */
  readonly unlike: readonly string[];
  /** Parameters that the other run has no values for. */
  readonly fresh: readonly string[];
  /** Values of the other run that this model has no place for. */
  readonly unused: readonly string[];
}

/**
 * Copies the newest checkpoint of the run in `path` into `params`, by name. Rows of the embedding and output matrices
 * beyond the other run's vocabulary keep their fresh values.
 * @throws AnsatzError when the tokenizers give the same id to different text, or shapes do not fit.
 */
export async function startFrom(
  path: string,
  model: Model,
  params: readonly TrainedParam[],
  tokenizer: Tokenizer,
  /** From the names of both, which of theirs stands for one of ours; by default the same. */
  choose: (ours: readonly string[], theirs: readonly string[]) => (path: string) => string = () => (path) => path,
): Promise<StartReport> {
  const run = RunFolder.open(path);
  const checkpoint = await latestCheckpoint(run);
  if (!checkpoint) throw new AnsatzError(`${path}: has no checkpoint to start from`);
  if (baseNoteOf(checkpoint))
    throw new AnsatzError(`${path}: adapts a quantised run, and has differences of low rank only`, {
      hint: 'start from the run that the quantised one was made from',
    });
  const own = join(run.path, 'tokenizer.json');
  if (existsSync(own)) sameIds(Tokenizer.fromFile(own), tokenizer, path);
  const stored = await checkpoint.tensors('model');
  // Of an adapted run, the matrices with their differences.
  const file = withDifferences(stored, adapterSchema.optional().parse(run.config.adapter));
  const names = new Set(file.names);
  const nameOf = choose(
    params.map((p) => p.path),
    file.names,
  );
  const used = new Set<string>();
  const [grown, fresh, copies]: [string[], string[], string[]] = [[], [], []];
  const unlike = new Set<string>();
  try {
    refuseQuantised(
      file,
      params.map((p) => p.path),
    );
    for (const { path: name, tensor, spec } of params) {
      const instead = model.startFrom?.(name);
      const same = nameOf(name);
      const source = names.has(same) ? same : instead !== undefined && names.has(instead) ? instead : undefined;
      if (source === undefined) {
        const single = spec.stackOf && [same, instead ?? same].map(singleOf).find((n) => names.has(n));
        const fits = single && file.info(single).shape.join() === singleShape(spec).join();
        if (!fits) {
          fresh.push(name);
          if (single) unlike.add(`${parentOf(name)} start fresh: ${parentOf(single)} of ${path} has other sizes`);
          continue;
        }
        used.add(single);
        copies.push(name);
        tensor.write(stacked(spec, (await file.read(single)) as Float32Array));
        const why = spec.stackOf!.unlike;
        if (why !== undefined) unlike.add(`${parentOf(single)} does not start as that of ${path}: ${why}`);
        continue;
      }
      used.add(source);
      const { shape } = file.info(source);
      const data = (await file.read(source)) as HostArray;
      if (shape.join() === tensor.shape.join()) tensor.writeBits(data);
      else if (growsByRows(shape, tensor.shape) && (spec.role === 'embedding' || spec.role === 'output')) {
        const bits = await tensor.bits();
        (bits as Float32Array).set(data as Float32Array);
        tensor.writeBits(bits as HostArray);
        grown.push(name);
      } else
        throw new AnsatzError(
          `${path}: ${source} is [${shape.join(', ')}], this model wants [${tensor.shape.join(', ')}]`,
          {
            hint: 'a run can start from one of the same width and depth; its vocabulary may be smaller',
          },
        );
    }
  } finally {
    await stored.close();
  }
  if (used.size === 0) throw new AnsatzError(`${path}: has no parameter in common with this model`);
  const unused = [...names].filter((name) => !used.has(name));
  const layers = new Set(copies.map((name) => parentOf(singleOf(name))));
  for (const name of unused)
    if (layers.has(parentOf(name)))
      unlike.add(`${parentOf(name)} does not start as that of ${path}: there is no place for ${name}`);
  for (const { path: name, spec } of params)
    if (spec.stackOf && spec.trainable !== false && fresh.includes(name) && layers.has(parentOf(singleOf(name))))
      unlike.add(`${parentOf(singleOf(name))} does not start as that of ${path}: ${name} starts fresh`);
  return {
    checkpoint: checkpoint.path,
    step: checkpoint.step,
    copied: params.length - fresh.length,
    grown,
    stacked: copies,
    unlike: [...unlike],
    fresh,
    unused,
  };
}

const parentOf = (path: string): string => path.slice(0, Math.max(0, path.lastIndexOf('.')));

const growsByRows = (from: readonly number[], to: readonly number[]): boolean =>
  from.length === to.length && from[0] < to[0] && from.slice(1).join() === to.slice(1).join();

/** @throws AnsatzError when an id means something else in two tokenizers. */
export function sameIds(old: Tokenizer, now: Tokenizer, path: string): void {
  for (let id = 0; id < old.vocabSize; id++)
    if (id < now.vocabSize && old.idToToken(id) !== now.idToToken(id))
      throw new AnsatzError(`${path}: was trained with another tokenizer: token ${id} means something else there`, {
        hint: 'use the data that the other run was trained on',
      });
}
