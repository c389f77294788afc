/** A run's objective, fitted to its model and rows. */
import { AnsatzError } from '../backend/errors.ts';
import { extrasOf } from '../data/packing-objective.ts';
import type { Tokenizer } from '../data/tokenizer/index.ts';
import { type BatchExtras, createBatch, type TokenBatch } from '../data/types.ts';
import { layoutTraits } from '../model/model.ts';
import {
  buildObjective,
  type Objective,
  type ObjectiveConfig,
  type Sizes,
  settledObjective,
  type Vocabulary,
} from '../objectives/index.ts';
import type { TrainConfig } from './config.ts';

type Sized = Pick<TrainConfig, 'model' | 'length'> & { readonly objective: ObjectiveConfig };

/** Tokens of a row of text: what the config says, or the model's context. */
export const rowLength = (config: Pick<TrainConfig, 'model' | 'length'>): number =>
  config.length ?? config.model.context;

const sizesOf = ({ model }: Pick<Sized, 'model'>, length: number): Sizes => ({
  length,
  longest: Math.max(length, model.context),
  encoder: layoutTraits(model).encoder === true,
});

/** @throws AnsatzError when the objective does not fit the model's layout or the row's length. */
export function objectiveOf(config: Sized, length = rowLength(config)): Objective {
  return buildObjective(config.objective, sizesOf(config, length));
}

/** The objective of a run for rows of other lengths than its own: the same examples and special tokens. */
export const settledFor = (config: Sized): ObjectiveConfig =>
  settledObjective(config.objective, sizesOf(config, rowLength(config)));

/** Positions of a training row that the model computes, encoder and decoder together. */
export function positionsOf({ shape }: Objective): number {
  return shape.length + shape.encoder;
}

/** A host batch for training rows. */
export const trainBatch = (config: TrainConfig): TokenBatch => {
  const objective = objectiveOf(config);
  return createBatch(config.batch, objective.shape.length, extrasOf(objective));
};

export type { BatchExtras };

/** What an objective needs to know of a tokenizer. */
export function vocabularyOf(tokenizer: Tokenizer): Vocabulary {
  return {
    eot: tokenizer.eot,
    id: (special) => {
      const id = tokenizer.specialIds.get(special);
      if (id === undefined) throw new AnsatzError(`the tokenizer has no special token ${special}`);
      return id;
    },
    encode: (text) => tokenizer.encode(text, { special: 'text' }),
    decode: (ids) => tokenizer.decodeBytes(ids),
  };
}
