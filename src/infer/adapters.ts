/**
 * Runs that learned differences of low rank, opened beside the run that they were learned for: its weights are used as they
 * are, whatever bits they have, and an adapter is no more than its own factors.
 */
import { resolve } from 'node:path';
import type { HostArray } from '../backend/dtype.ts';
import { MetaDevice } from '../backend/meta/device.ts';
import type { Model } from '../model/model.ts';
import { flatten, forwardContext, initialise, type LowRank, type ParamTree, withLowRank } from '../nn/index.ts';
import { AdaptedTensor, noGrad, scope, Tensor, trace, zeros } from '../tensor/index.ts';
import { baseNoteOf } from '../train/base.ts';
import { parseTrainConfig, type TrainConfig } from '../train/config.ts';
import { adaptedIn, scaleOf } from '../train/lora.ts';
import { objectiveOf } from '../train/objective.ts';
import { canonicalJson, type JsonObject } from '../train/run/canonical.ts';
import type { Checkpoint } from '../train/run/checkpoint.ts';
import { RunFolder } from '../train/run/folder.ts';
import type { SafetensorsFile } from '../train/safetensors.ts';
import { sketch } from './engine/pools.ts';
import { type CheckpointChoice, chooseCheckpoint, type OpenRun, runTokenizer } from './load.ts';

/** An adapter over an open run: `params` are the run's own, with the differences beside them. */
export interface OpenAdapter extends OpenRun {
  readonly differences: ReadonlyMap<string, LowRank>;
  /** Frees the factors. What they stand beside stays. */
  dispose(): void;
}

/** The run that an adapter's differences are for, by its path; null: the run in `path` is none. */
export function adapts(path: string): string | null {
  const { adapter, from } = RunFolder.open(path).config as { adapter?: unknown; from?: unknown };
  return adapter && typeof from === 'string' ? resolve(from) : null;
}

/** Whether the adapter of a run was learned for these weights, or for those that they were rounded from. */
export function isFor(from: string, { run, config }: OpenRun): boolean {
  const { madeFrom } = config;
  return resolve(run.path) === from || (madeFrom?.by === 'quantize' && resolve(madeFrom.run) === from);
}

/**
 * Opens the adapter in `path` over the run that it is for. Null where that would not be the same as adding its
 * differences to the weights: another spec, other weights, or parts that use an adapted matrix otherwise
 * than as x W^T.
 */
export async function openAdapter(
  path: string,
  base: OpenRun,
  choice: CheckpointChoice = {},
): Promise<OpenAdapter | null> {
  const run = RunFolder.open(path);
  const config = parseTrainConfig(run.config);
  if (!config.adapter || !sameModel(config, base.config)) return null;
  const checkpoint = await chooseCheckpoint(run, path, choice);
  const tokenizer = runTokenizer(run, config.data.folder, checkpoint);
  const file = await checkpoint.tensors('model');
  const own: Tensor[] = [];
  const dispose = (): void => {
    for (const t of own) t.dispose();
  };
  try {
    const adapted = adaptedIn(file.names);
    const paths = adapted.map((a) => a.path);
    if (!addsUp(base.model, paths) || !(await sameWeights(checkpoint, file, base))) return null;
    const read = async (name: string): Promise<Tensor> => {
      const t = Tensor.empty(base.device, 'f32', file.info(name).shape).keep();
      own.push(t);
      t.writeBits((await file.read(name)) as HostArray);
      return t;
    };
    const scale = scaleOf(config.adapter);
    const differences = new Map<string, LowRank>();
    for (const { path: at, a, b } of adapted) differences.set(at, { a: await read(a), b: await read(b), scale });
    return {
      ...{ device: base.device, model: base.model, config, run, checkpoint, tokenizer, objective: objectiveOf(config) },
      ...{ params: withLowRank(base.params, differences), differences, dispose },
    };
  } catch (error) {
    dispose();
    throw error;
  } finally {
    await file.close();
  }
}

const sameModel = (a: TrainConfig, b: TrainConfig): boolean =>
  a.precision === b.precision && canonicalJson(a.model as JsonObject) === canonicalJson(b.model as JsonObject);

/**
 * Whether an adapter was learned on the weights that are served: it says so, or holds them, bit for bit. Those that were
 * rounded afterwards cannot be compared.
 */
async function sameWeights(
  checkpoint: Checkpoint,
  file: SafetensorsFile,
  { params, config, checkpoint: served }: OpenRun,
): Promise<boolean> {
  if (flatten(params).some(({ tensor }) => tensor instanceof AdaptedTensor)) return false;
  const note = baseNoteOf(checkpoint);
  if (note) return note.seal === served.manifest.seal;
  if (config.madeFrom?.by === 'quantize') return true;
  const names = new Set(file.names);
  for (const { path, tensor } of flatten(params)) {
    if (!names.has(path) || tensor.dtype !== 'f32') return false;
    const theirs = (await file.read(path)) as Float32Array;
    const ours = (await tensor.bits()) as Float32Array;
    const bytes = (x: Float32Array): Buffer => Buffer.from(x.buffer, x.byteOffset, x.byteLength);
    if (!bytes(theirs).equals(bytes(ours))) return false;
  }
  return true;
}

/**
 * Whether every product with these matrices takes their differences too, in whole texts and in rows: found by running the
 * model without values and counting who is multiplied by.
 */
function addsUp(model: Model, paths: readonly string[]): boolean {
  let fits = true;
  /** Runs something with differences of rank 1, and compares how often each matrix and its factor are used. */
  const check = <R>(params: ParamTree, least: number, run: (adapted: ParamTree) => R): R => {
    const weights = new Map(flatten(params).map(({ path, tensor }) => [path, tensor]));
    const low = new Map(
      paths.flatMap((path): [string, LowRank][] => {
        const w = weights.get(path);
        if (w?.rank !== 2) return [];
        const zero = (shape: number[]): Tensor => zeros(w.device, shape);
        return [[path, { a: zero([1, w.shape[1]]), b: zero([w.shape[0], 1]), scale: 1 }]];
      }),
    );
    fits &&= low.size === paths.length;
    const { result, calls } = trace(() => run(withLowRank(params, low)));
    const uses = new Map<number, number>();
    for (const arg of calls.flatMap((c) => c.args))
      if (arg) uses.set(arg.memory.id, (uses.get(arg.memory.id) ?? 0) + 1);
    const count = (t: Tensor): number => uses.get(t.storage.memory.id) ?? 0;
    for (const [path, { a }] of low) fits &&= count(a) >= least && count(a) === count(weights.get(path)!);
    return result;
  };
  const device = new MetaDevice();
  scope(() =>
    noGrad(() => {
      const params = initialise(model, device, 0);
      model.prepare(device);
      const ids = zeros(device, [1, 8], 'i32');
      const encoder = model.encoder ? { inputs: ids, segments: ids, positions: ids } : null;
      const batch = { inputs: ids, segments: ids, positions: ids, encoder };
      check(params, 1, (p) => model.hidden(p, batch, forwardContext({ device, compute: 'f32' })));
    }),
  );
  // What an encoder reads is no part of a pass over rows.
  sketch({ ...model, hidden: (p, batch, c) => check(p, 0, (q) => model.hidden(q, batch, c)) }, 32);
  return fits;
}
