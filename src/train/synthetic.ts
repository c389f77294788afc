/** A made-up language, for measurements that need something to learn but no text: a random process of order two. */
import { AnsatzError } from '../backend/errors.ts';
import { Loader } from '../data/loader.ts';
import { createObjectivePacking } from '../data/packing-objective.ts';
import type { TokenData } from '../data/types.ts';
import type { Vocabulary } from '../objectives/index.ts';
import type { TrainConfig } from './config.ts';
import { objectiveOf, positionsOf, rowLength } from './objective.ts';

/** Probabilities of the continuations of a pair of tokens (1.21 nats when they differ). */
const CHANCES = [0.5, 0.25, 0.15, 0.1];

/** A 32-bit hash (the finaliser of MurmurHash3). */
function mix(x: number): number {
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/** `count` tokens below `vocab`; the language is the same for every seed. */
function sentence(vocab: number, count: number, draw: () => number, out: Int32Array, at: number): void {
  let [before, last] = [Math.floor(draw() * vocab), Math.floor(draw() * vocab)];
  for (let t = 0; t < count; t++) {
    const u = draw();
    let choice = 0;
    for (let sum = CHANCES[0]; choice < CHANCES.length - 1 && u >= sum; sum += CHANCES[choice]) choice++;
    // A token depends on the one before it and on a class of the one before that.
    const next = mix(mix(last * 8 + (before % 8)) + choice) % vocab;
    [before, last] = [last, next];
    out[at + t] = next;
  }
}

/** Documents of `length` tokens in memory, the end-of-text token included. */
function documents(vocab: number, eot: number, count: number, length: number, seed: number): TokenData {
  let state = mix(seed + 1);
  const draw = (): number => {
    state = (state + 0x9e3779b9) | 0;
    return mix(state) / 2 ** 32;
  };
  const tokens = new Int32Array(count * length);
  for (let d = 0; d < count; d++) {
    sentence(vocab, length - 1, draw, tokens, d * length);
    tokens[(d + 1) * length - 1] = eot;
  }
  return {
    name: 'synthetic',
    tokenCount: tokens.length,
    documentCount: count,
    textBytes: tokens.length,
    vocabSize: eot + 1,
    eot,
    tokenizerHash: 'synthetic',
    fingerprint: `synthetic ${vocab} ${count} ${length} ${seed}`,
    docStarts: Float64Array.from({ length: count + 1 }, (_, d) => d * length),
    docBytes: new Float64Array(count).fill(length),
    read: (start, n, out, at) => out.set(tokens.subarray(start, start + n), at),
    close: () => {},
  };
}

/** Rows of the language for a config's objective, for `batches` batches before they repeat. */
export function syntheticLoader(config: TrainConfig, batches: number, seed = config.seed): Loader {
  const objective = objectiveOf(config);
  const { vocab } = config.model;
  // The last ids are the end of text and the objective's special tokens.
  const eot = vocab - 1 - objective.specials.length;
  if (eot < 8)
    throw new AnsatzError(`a vocabulary of ${vocab} leaves no room for a language`, { hint: '--set model.vocab=64' });
  const vocabulary: Vocabulary = {
    eot,
    id: (special) => eot + 1 + objective.specials.indexOf(special),
    encode: (text) => Int32Array.from(text, (byte) => byte % eot),
    decode: (ids) => Uint8Array.from(ids),
  };
  const length = rowLength(config);
  const count = Math.ceil((batches * config.batch * positionsOf(objective)) / length) + config.batch;
  const data = documents(eot, eot, count, length, seed);
  const packing = createObjectivePacking(data, {
    length,
    mode: 'stream',
    seed,
    objective,
    vocabulary,
    name: 'synthetic',
  });
  return new Loader([{ name: 'train', packing }], { batch: config.batch, seed });
}
