/** What a run reads and holds: its data, its model, its parameters; and how they are saved and restored. */
import { join } from 'node:path';
import type { HostArray } from '../backend/dtype.ts';
import { AnsatzError } from '../backend/errors.ts';
import { type Device, openDevice } from '../backend/index.ts';
import { Loader } from '../data/loader.ts';
import { HeldOutLoader } from '../data/loader-held-out.ts';
import type { Packing } from '../data/packing.ts';
import { createObjectivePacking, rowOf } from '../data/packing-objective.ts';
import { readBaselines, tokenizerHash } from '../data/prepare.ts';
import { openTokens } from '../data/shards.ts';
import { reserveSpecials, Tokenizer } from '../data/tokenizer/index.ts';
import { createBatch, type TokenBatch, type TokenData } from '../data/types.ts';
import { buildModel, type Model } from '../model/model.ts';
import { initialise, type ParamTree } from '../nn/index.ts';
import type { Tensor } from '../tensor/index.ts';
import { baseNoteOf, baseOf, type QuantisedBase } from './base.ts';
import { parseTrainConfig, type TrainConfig } from './config.ts';
import { beside, withDifferences, withLora } from './lora.ts';
import { objectiveOf, rowLength, vocabularyOf } from './objective.ts';
import { canonicalJson, type JsonObject } from './run/canonical.ts';
import type { Checkpoint } from './run/checkpoint.ts';
import { refuseQuantised, storedParams } from './stored.ts';

export { rowLength } from './objective.ts';
export { tensorSource } from './stored.ts';

export interface RunData {
  readonly tokenizer: Tokenizer;
  readonly train: TokenData;
  readonly heldOut: TokenData;
  /** Bits per byte of general compressors on the held-out text. */
  readonly baselines: Record<string, number>;
  close(): void;
}

/**
 * Opens a prepared data folder for a config.
 * @throws AnsatzError when it is missing, damaged, or made with a tokenizer the model does not fit.
 */
export function openRunData(config: TrainConfig): RunData {
  const { folder } = config.data;
  const stored = Tokenizer.fromFile(join(folder, 'tokenizer.json'));
  // Ids of text stay as they are in the shards; special tokens of the objective come after them.
  const tokenizer = reserveSpecials(stored, objectiveOf(config).specials);
  const own = tokenizer.vocabSize - stored.vocabSize;
  if (tokenizer.vocabSize > config.model.vocab)
    throw new AnsatzError(
      `the tokenizer in ${folder} has ${stored.vocabSize} tokens${own ? ` and the objective ${own} of its own` : ''}, the model a vocabulary of ${config.model.vocab}`,
      {
        hint: `set model.vocab to ${tokenizer.vocabSize} or more`,
      },
    );
  const hash = tokenizerHash(stored);
  const train = openTokens(folder, 'train', { tokenizerHash: hash });
  const heldOut = openTokens(folder, 'heldout', { tokenizerHash: hash });
  return {
    tokenizer,
    train,
    heldOut,
    baselines: readBaselines(folder),
    close: () => {
      train.close();
      heldOut.close();
    },
  };
}

/** Rows of a text as the run's objective makes them. */
export const objectivePacking = (config: TrainConfig, data: RunData, text: TokenData, seed: number): Packing =>
  createObjectivePacking(text, {
    length: rowLength(config),
    mode: config.data.packing,
    seed,
    objective: objectiveOf(config),
    vocabulary: vocabularyOf(data.tokenizer),
    name: canonicalJson(config.objective as JsonObject),
  });

export function trainLoader(config: TrainConfig, data: RunData): Loader {
  const packing = objectivePacking(config, data, data.train, config.seed);
  return new Loader([{ name: 'train', packing }], { batch: config.batch, seed: config.seed });
}

/** Held-out text, every token a target once: by a decoder from those before it, or by one that reads an encoder. */
export function heldOutRows(
  config: TrainConfig,
  data: RunData,
  maxTokens?: number,
): { loader: HeldOutLoader; encoder: number; batches: () => Generator<TokenBatch> } {
  const made = objectiveOf(config).heldOut?.(vocabularyOf(data.tokenizer));
  const { encoder = 0, overlap = 0 } = made ?? {};
  const { batch } = config;
  const loader = new HeldOutLoader(data.heldOut, { batch, length: rowLength(config), overlap, maxTokens });
  const into = createBatch(batch, loader.length, { encoder });
  function* batches(): Generator<TokenBatch> {
    for (let k = 0; k < loader.batches; k++) {
      loader.read(k, into);
      for (let row = 0; made && row < batch; row++) made.change(rowOf(into, row));
      yield into;
    }
  }
  return { loader, encoder, batches };
}

/** Loads named tensors of one set of a checkpoint; every one must be there with its shape. */
export async function loadTensors(
  checkpoint: Checkpoint,
  set: string,
  tensors: Iterable<[string, Tensor]>,
): Promise<void> {
  const file = await checkpoint.tensors(set);
  try {
    const wanted = [...tensors];
    refuseQuantised(
      file,
      wanted.map(([name]) => name),
    );
    for (const [name, t] of wanted) {
      const info = file.info(name);
      if (info.shape.join() !== t.shape.join())
        throw new AnsatzError(
          `${file.path}: ${name} is [${info.shape.join(', ')}], the model wants [${t.shape.join(', ')}]`,
          {
            hint: 'the checkpoint belongs to another model spec',
          },
        );
      t.writeBits((await file.read(name)) as HostArray);
    }
  } finally {
    await file.close();
  }
}

export interface LoadedModel {
  readonly device: Device;
  readonly config: TrainConfig;
  readonly model: Model;
  readonly params: ParamTree;
}

/** The model as a run trains it: as its spec says, or with an adapter. */
export function trainedModel({ model, adapter }: Pick<TrainConfig, 'model' | 'adapter'>): Model {
  const built = buildModel(model);
  return adapter ? withLora(built, adapter) : built;
}

/** A model with fresh parameters for a config; of a quantised base only the differences are new. */
export function freshModel(input: unknown, base: QuantisedBase | null = null): LoadedModel {
  const config = parseTrainConfig(input);
  const device = openDevice(config.device);
  const model = trainedModel(config);
  if (!base) return { device, config, model, params: initialise(model, device, config.seed) };
  const { lora } = model.children!;
  const own = initialise({ children: { lora } }, device, config.seed);
  return { device, config, model, params: { ...base.params, ...own } };
}

/** A model with a checkpoint's parameters, in the types that they are stored in; an adapter's are added to its base's. */
export async function loadModel(input: unknown, checkpoint: Checkpoint): Promise<LoadedModel> {
  const config = parseTrainConfig(input);
  const device = openDevice(config.device);
  const model = buildModel(config.model);
  const note = baseNoteOf(checkpoint);
  const file = await checkpoint.tensors('model');
  try {
    if (note && config.adapter) {
      const base = await baseOf(config, device, note);
      const params = await beside(
        base.params,
        file,
        config.adapter,
        config.precision === 'bf16' ? 'bf16x16' : 'f32x16',
      );
      return { device, config, model, params };
    }
    return {
      device,
      config,
      model,
      params: await storedParams(withDifferences(file, config.adapter), model, device),
    };
  } finally {
    await file.close();
  }
}
