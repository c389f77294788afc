/** What a change of a model's weights did: held-out loss, bytes, tokens a second. */
import type { TokenBatch } from '../../data/types.ts';
import { type HeldOutLoss, heldOutLoss } from '../../train/evaluate.ts';
import { heldOutRows, type LoadedModel, type RunData } from '../../train/session.ts';
import { openDecoding } from '../decoding.ts';
import type { Picker } from '../engine/index.ts';
import { weightBytes } from './targets.ts';

export interface Measured {
  /** Nats a token of held-out text, and bits a byte of it. */
  readonly loss: number;
  readonly bitsPerByte: number;
  /** Of the parameters in memory. */
  readonly bytes: number;
  /** Of one sequence, greedily decoded; null when not asked for. */
  readonly tokensPerSecond: number | null;
}

export interface MeasureOptions {
  /** Tokens of held-out text; all when absent. */
  readonly maxTokens?: number;
  /** Seconds of decoding, of each; 0 does not decode. */
  readonly seconds: number;
  readonly onProgress?: () => void;
}

/** Times at which speeds are taken in turn, so that both meet the machine in the same mood. */
const ROUNDS = 2;

/** A model, and the text as its objective reads it. */
export interface Subject {
  readonly loaded: LoadedModel;
  readonly data: RunData;
}

/** Both models on the same text. */
export async function compare(
  subjects: readonly [Subject, Subject],
  o: MeasureOptions,
): Promise<[before: Measured, after: Measured]> {
  const losses: HeldOutLoss[] = [];
  for (const { loaded, data } of subjects)
    losses.push(await heldOutLoss(loaded, loaded.config, data, o.maxTokens, () => o.onProgress?.()));
  const speeds = [0, 0];
  for (let round = 0; round < (o.seconds > 0 ? ROUNDS : 0); round++)
    for (const [k, { loaded, data }] of subjects.entries()) {
      speeds[k] = Math.max(speeds[k], await decodingSpeed(loaded, data, o.seconds / ROUNDS));
      o.onProgress?.();
    }
  const [before, after] = subjects.map(({ loaded }, k) => ({
    ...losses[k],
    bytes: weightBytes(loaded.params),
    tokensPerSecond: o.seconds > 0 ? speeds[k] : null,
  }));
  return [before, after];
}

/** Tokens that a text is begun with, and that are decoded at a time. */
const [PROMPT, ANSWER] = [16, 64];

/** The best rate of several short continuations of a held-out text: others that use the machine only ever slow one down. */
export async function decodingSpeed(loaded: LoadedModel, data: RunData, seconds: number): Promise<number> {
  const { device, model, params, config } = loaded;
  const { context } = model.spec;
  const first = heldOutRows({ ...config, batch: 1 }, data, 1)
    .batches()
    .next().value as TokenBatch;
  const prompt: number[] = Array.from(first.inputs.subarray(0, Math.min(PROMPT, Math.ceil(context / 4))));
  const encoder = first.encoder && Array.from(first.encoder.inputs.subarray(0, PROMPT));
  const decoding = openDecoding(device, model, params, { compute: config.precision, sequences: 1 });
  let best = 0;
  try {
    for (const end = performance.now() + seconds * 1000; best === 0 || performance.now() < end; ) {
      let started = 0;
      let tokens = 0;
      await decoding.submit({
        prompt,
        encoder,
        maxTokens: Math.min(ANSWER, context - prompt.length),
        picker: greedy,
        onToken: () => {
          // The first one waits for the prompt.
          if (tokens++ === 0) started = performance.now();
          return true;
        },
      });
      best = Math.max(best, ((tokens - 1) * 1000) / (performance.now() - started));
      if (tokens < 2) return 0;
    }
  } finally {
    await decoding.close();
  }
  return best;
}

const greedy: Picker = {
  pick(logits) {
    let token = 0;
    for (let k = 1; k < logits.length; k++) if (logits[k] > logits[token]) token = k;
    return { token, logprob: null };
  },
};
