/**
 * What a format of the cache costs: the loss of held-out text when keys and values are read from it. Every token is given
 * (teacher forcing), and goes through the decoder's own passes: the same rows, pages and kernels as when text is written.
 */

import { AnsatzError } from '../backend/errors.ts';
import { bitsPerByte } from '../data/baselines.ts';
import { IGNORE, type TokenBatch } from '../data/types.ts';
import type { CacheFormat } from '../tensor/index.ts';
import type { HeldOutLoss } from '../train/evaluate.ts';
import { heldOutRows, type LoadedModel, type RunData } from '../train/session.ts';
import { cacheSizes, type OpenDecoding, openDecoding, whyNotRows } from './decoding.ts';
import type { Picker } from './engine/index.ts';
import { logSumExp } from './sampling/index.ts';

export interface CacheLoss extends HeldOutLoss {
  readonly format: CacheFormat;
  /** Of the cache, for each token of a text. */
  readonly bytesPerToken: number;
  readonly targets: number;
}

/** Texts that are read at a time. */
const SEQUENCES = 8;

/** @throws AnsatzError when the model keeps nothing of its tokens. */
export async function cacheLoss(
  { device, model, params, config }: LoadedModel,
  data: RunData,
  format: CacheFormat,
  maxTokens?: number,
  onProgress?: (done: number, total: number) => void,
): Promise<CacheLoss> {
  const why = whyNotRows(model);
  if (why) throw new AnsatzError(`this model is decoded without a cache (${why})`, { hint: 'leave --cache out' });
  const compute = config.precision;
  const { loader, encoder, batches } = heldOutRows(config, data, maxTokens);
  const byDocument = encoder > 0 || !config.data.crossDocuments;
  const decoding = openDecoding(device, model, params, { compute, cache: format, sequences: SEQUENCES });
  let [nats, targets, done] = [0, 0, 0];
  try {
    for (const batch of batches()) {
      const scores = await Promise.all(textsOf(batch, byDocument).map((t) => scored(decoding, t)));
      for (const score of scores) nats += score;
      for (const target of batch.targets) if (target !== IGNORE) targets++;
      onProgress?.(++done, loader.batches);
    }
  } finally {
    await decoding.close();
  }
  const { each, page } = cacheSizes(model, compute, format);
  return {
    ...{ format, bytesPerToken: each / page, loss: nats / targets, targets },
    bitsPerByte: bitsPerByte(nats, loader.textBytes),
  };
}

/** What one sequence sees of a row: a document, or (--cross-documents) the row. */
interface Text {
  readonly inputs: readonly number[];
  readonly targets: readonly number[];
  readonly encoder?: readonly number[];
}

/** The texts of a batch, up to their last target; those that have none are left out. */
function textsOf({ batch, length, inputs, targets, segments, encoder }: TokenBatch, byDocument: boolean): Text[] {
  const texts: Text[] = [];
  for (let row = 0; row < batch; row++)
    for (let [from, end] = [row * length, (row + 1) * length]; from < end; ) {
      let [next, to] = [from, from];
      for (; next < end && (!byDocument || segments[next] === segments[from]); next++)
        if (targets[next] !== IGNORE) to = next + 1;
      const part = (x: Int32Array): number[] => Array.from(x.subarray(from, to));
      const read = encoder && encoderText(encoder, row, segments[from]);
      if (to > from) texts.push({ inputs: part(inputs), targets: part(targets), ...(read && { encoder: read }) });
      from = next;
    }
  return texts;
}

/** Segment s of the decoder reads segment s of the encoder. */
function encoderText(
  { inputs, segments, length }: NonNullable<TokenBatch['encoder']>,
  row: number,
  segment: number,
): number[] {
  const places = Array.from({ length }, (_, k) => row * length + k);
  return places.filter((k) => segments[k] === segment).map((k) => inputs[k]);
}

/** Nats of a text's targets. */
async function scored(decoding: OpenDecoding, { inputs, targets, encoder }: Text): Promise<number> {
  let nats = 0;
  const count = (at: number, logits: Float32Array): void => {
    if (targets[at] !== IGNORE) nats += logSumExp(logits) - logits[targets[at]];
  };
  // The logits after the last token are those that something is picked from.
  const picker: Picker = {
    pick: (logits) => {
      count(inputs.length - 1, logits);
      return null;
    },
  };
  await decoding.submit({
    ...{ prompt: inputs, encoder, maxTokens: 1, picker, onToken: () => false },
    scorePrompt: (_, place, logits) => count(place - 1, logits),
  });
  return nats;
}
