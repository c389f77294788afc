/** A run folder from a Hugging Face folder: its spec, its tokenizer, and its weights as the checkpoint of step 0. */
import { copyFileSync, existsSync, statSync, writeFileSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { AnsatzError } from '../../backend/errors.ts';
import { tokenizerHash } from '../../data/prepare.ts';
import { Tokenizer } from '../../data/tokenizer/index.ts';
import { buildModel } from '../../model/model.ts';
import type { ModelSpec } from '../../model/spec.ts';
import { countParams, declared } from '../../nn/index.ts';
import { parseTrainConfig, type TrainConfig } from '../../train/config.ts';
import type { JsonObject } from '../../train/run/canonical.ts';
import { saveCheckpoint } from '../../train/run/checkpoint.ts';
import { RunFolder } from '../../train/run/folder.ts';
import type { TensorSource } from '../../train/safetensors.ts';
import { bySource, elementsOf, readIn } from './blocks.ts';
import { COMPANIONS, chatFiles } from './chat-files.ts';
import type { Json } from './hf-config.ts';
import { type Imported, importedSpec } from './hf-spec.ts';
import { HfWeights, readJson } from './hf-weights.ts';
import { freePlace, madeWhole } from './place.ts';

export interface ImportOptions {
  readonly folder: string;
  readonly out: string;
  /** Longest sequence; by default what the model was made for. */
  readonly context?: number;
  readonly onProgress?: (done: number, total: number) => void;
}

export interface ImportReport {
  readonly architecture: string;
  readonly spec: ModelSpec;
  readonly parameters: number;
  readonly tokens: number;
  readonly types: string[];
}

/**
 * Makes the run, or nothing.
 * @throws AnsatzError when a file is missing, damaged, or asks for what our parts cannot do.
 */
export async function importHuggingFace(o: ImportOptions): Promise<ImportReport> {
  const { folder, onProgress } = o;
  if (!existsSync(folder) || !statSync(folder).isDirectory())
    throw new AnsatzError(`${folder}: ${existsSync(folder) ? 'is not a folder' : 'there is no such folder'}`, {
      hint: 'give a folder with config.json, tokenizer.json and safetensors files',
    });
  const out = freePlace(o.out, 'folder');
  const configPath = join(folder, 'config.json');
  const json = readJson(configPath);
  const weights = await HfWeights.open(folder);
  try {
    const imported = importedSpec(json, configPath, { most: weights.names.length, context: o.context });
    weights.check(imported.tensors, imported.idle, folder);
    const tokenizer = tokenizerFor(imported, folder);
    const { ends } = chatFiles(folder); // what cannot be read is said now, not when somebody serves it
    const generation = ends.length > 0 ? null : generationOf(json, folder, tokenizer);
    const types = [...new Set(imported.tensors.map((t) => weights.typeOf(t.name)))];
    const start = startOf(json, imported, tokenizer);
    const config = configFor(imported, out, types, start === undefined ? undefined : tokenizer.idToToken(start));
    const state = {
      ...{ step: 0, tokens: 0, lossTokens: 0, elapsed: 0, skipsInARow: 0, seed: config.seed },
      tokenizer: tokenizerHash(tokenizer),
      imported: {
        architecture: imported.architecture,
        ...(start === undefined ? {} : { decoderStart: start }),
      },
    };
    await madeWhole(out, async (draft) => {
      const run = await RunFolder.create(draft, config as unknown as JsonObject);
      tokenizer.save(join(draft, 'tokenizer.json'));
      for (const name of COMPANIONS)
        if (existsSync(join(folder, name))) copyFileSync(join(folder, name), join(draft, name));
      if (generation) writeFileSync(join(draft, GENERATION), `${JSON.stringify(generation, null, 2)}\n`);
      const model = sourcesOf(imported, weights, onProgress);
      await saveCheckpoint(run, 0, { tensors: { model }, state });
    });
    return {
      architecture: imported.architecture,
      spec: imported.spec,
      parameters: countParams(buildModel(imported.spec)),
      tokens: tokenizer.vocabSize,
      types,
    };
  } finally {
    await weights.close();
  }
}

function tokenizerFor({ spec }: Imported, folder: string): Tokenizer {
  const path = join(folder, 'tokenizer.json');
  if (!existsSync(path))
    throw new AnsatzError(`${path}: there is no such file`, {
      hint: 'let transformers write it: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)',
    });
  const tokenizer = Tokenizer.fromFile(path);
  if (tokenizer.vocabSize > spec.vocab)
    throw new AnsatzError(
      `${folder}: tokenizer.json has ${tokenizer.vocabSize} tokens, the model only ${spec.vocab} (vocab_size)`,
      { hint: 'the files do not belong together: copy them again' },
    );
  void tokenizer.eot; // texts must have an end
  return tokenizer;
}

const GENERATION = 'generation_config.json';

/** Where generation_config.json says nothing of the tokens that end a text, config.json does (as transformers reads them). */
function generationOf(json: Json, folder: string, tokenizer: Tokenizer): Json | null {
  const ends = [json.eos_token_id].flat().filter((id) => Number.isInteger(id) && (id as number) < tokenizer.vocabSize);
  if (ends.length === 0 || (ends.length === 1 && ends[0] === tokenizer.eot)) return null;
  const path = join(folder, GENERATION);
  return { ...(existsSync(path) ? readJson(path) : {}), eos_token_id: ends.length === 1 ? ends[0] : ends };
}

/** The token that a T5 decoder begins with, where it is a special one other than the end of texts. */
function startOf(json: Json, { architecture }: Imported, tokenizer: Tokenizer): number | undefined {
  if (architecture !== 'T5ForConditionalGeneration') return undefined;
  const id = json.decoder_start_token_id ?? json.pad_token_id;
  return [...tokenizer.specialIds.values()].find((known) => known === id && known !== tokenizer.eot);
}

/** A run's config needs more than a model; what is not known of a model that was trained elsewhere gets defaults. */
function configFor(
  { spec, architecture }: Imported,
  out: string,
  types: readonly string[],
  start: string | undefined,
): TrainConfig {
  const reads = architecture === 'T5ForConditionalGeneration';
  return parseTrainConfig({
    name: basename(out),
    model: spec,
    data: { folder: resolve(out) },
    objective: reads ? { kind: 'prefix-lm', closed: true, ...(start === undefined ? {} : { start }) } : 'causal',
    // Products as precise as the weights that were published.
    precision: types.includes('F32') ? 'f32' : 'bf16',
    steps: 1,
  });
}

/** Our parameters, each read from the files when its turn comes. */
function sourcesOf(
  { spec, tensors }: Imported,
  weights: HfWeights,
  onProgress: ImportOptions['onProgress'],
): TensorSource[] {
  const blocks = bySource(tensors);
  const params = declared(buildModel(spec));
  let done = 0;
  return params.map(({ path, spec: p }) => {
    const parts = blocks.get(path) ?? [];
    const covered = parts.reduce((n, { block }) => n + block.rows * block.cols, 0);
    // Counts of experts' loads, and a bias that the other model does without, begin at 0.
    if (covered !== elementsOf(p.shape) && !(covered === 0 && (p.trainable === false || path.endsWith('.outBias'))))
      throw new Error(`${path}: ${covered} of ${elementsOf(p.shape)} values have a source`);
    const data = async (): Promise<Float32Array> => {
      const values = await readIn(elementsOf(p.shape), parts, weights.fileOf);
      onProgress?.(++done, params.length);
      return values;
    };
    return { name: path, dtype: 'F32' as const, shape: p.shape, data };
  });
}
