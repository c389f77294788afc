// Decoding by rows against computing whole texts: log-odds at every place, whatever else is in a pass and however a text
// comes in parts; and continuations with drafts that are wrong now and then, which must leave no trace.
import assert from 'node:assert/strict';
import type { CpuDevice } from '../../src/backend/cpu/device.ts';
import { type DecodingOptions, openDecoding, whyNotRows } from '../../src/infer/decoding.ts';
import type { Model } from '../../src/model/model.ts';
import { forwardContext, type ParamTree } from '../../src/nn/index.ts';
import { noGrad, scope, Tensor } from '../../src/tensor/index.ts';

export interface Text {
  readonly tokens: readonly number[];
  /** What an encoder reads first. */
  readonly encoder?: readonly number[];
}

export const argmax = (x: Float32Array): number => x.reduce((best, v, k) => (v > x[best] ? k : best), 0);
const greedy = { pick: (logits: Float32Array) => ({ token: argmax(logits), logprob: 0 }) };

/** A text of n tokens without a short period. */
export const textOf = (n: number, seed: number, vocab: number): number[] =>
  Array.from({ length: n }, (_, k) => (k * k * seed + 5 * k + Math.floor((k * seed) / 7) + seed) % vocab);

/** Log-odds of every place, computed at once. */
export function whole(device: CpuDevice, model: Model, params: ParamTree, { tokens, encoder }: Text): Float32Array {
  model.prepare(device);
  return scope(() =>
    noGrad(() => {
      const c = forwardContext({ device, compute: 'f32' });
      const ids = (values: readonly number[]): Tensor => Tensor.from(device, [...values], [1, values.length], 'i32');
      const ones = (values: readonly number[]): Tensor => ids(values.map(() => 1));
      const read = encoder && {
        ...{ inputs: ids(encoder), segments: ones(encoder), positions: ids(encoder.map((_, k) => k)) },
      };
      const batch = { inputs: ids(tokens), segments: read ? ones(tokens) : null, positions: null, encoder: read };
      return model.logits(params, model.hidden(params, batch, c), c).dataSync() as Float32Array;
    }),
  );
}

/** Log-odds of every place but the last, by rows; all texts at once. */
export async function byRows(
  device: CpuDevice,
  model: Model,
  params: ParamTree,
  texts: readonly Text[],
  options: Partial<DecodingOptions> = {},
): Promise<Float32Array[]> {
  const decoding = openDecoding(device, model, params, { compute: 'f32', ...options });
  assert.equal(decoding.recomputes, null);
  const { vocab } = model.spec;
  const made = texts.map(({ tokens }) => new Float32Array((tokens.length - 1) * vocab));
  await Promise.all(
    texts.map(({ tokens, encoder }, k) =>
      decoding.submit({
        ...{ prompt: tokens, encoder, maxTokens: 0, picker: greedy, onToken: () => true },
        scorePrompt: (_, place, logits) => made[k].set(logits, (place - 1) * vocab),
      }),
    ),
  );
  await decoding.close();
  return made;
}

/** The most likely continuation by rows, drafts of which every fourth token is wrong. */
export async function continued(
  device: CpuDevice,
  model: Model,
  params: ParamTree,
  texts: readonly Text[],
  expected: readonly (readonly number[])[],
  options: Partial<DecodingOptions> = {},
): Promise<number[][]> {
  const decoding = openDecoding(device, model, params, { compute: 'f32', drafts: 3, ...options });
  const { vocab } = model.spec;
  let asked = 0;
  const got = texts.map((): number[] => []);
  await Promise.all(
    texts.map(({ tokens, encoder }, k) =>
      decoding.submit({
        ...{ prompt: tokens, encoder, maxTokens: expected[k].length, picker: greedy },
        onToken: (p) => void got[k].push(p.token),
        drafter: {
          draft: (all, most) => {
            const at = all.length - tokens.length;
            return expected[k].slice(at, at + most).map((t) => (asked++ % 4 === 3 ? (t + 1) % vocab : t));
          },
        },
      }),
    ),
  );
  const { drafted, accepted } = decoding.stats();
  assert.ok(accepted > 0 && accepted < drafted, `${accepted} of ${drafted} drafts were right`);
  await decoding.close();
  return got;
}

export const largest = (a: Float32Array, b: Float32Array): number =>
  a.reduce((most, x, k) => Math.max(most, Math.abs(x - b[k])), 0);

/** Log-odds by rows, which must be the same bits in parts of any size, with neighbours and without. */
export async function sameInParts(
  device: CpuDevice,
  model: Model,
  params: ParamTree,
  texts: readonly Text[],
): Promise<Float32Array[]> {
  const together = await byRows(device, model, params, texts);
  const same = (got: Float32Array, k: number, how: string): void => {
    const off = largest(got, together[k]);
    assert.ok(off === 0, `text ${k} ${how}: log-odds are off by ${off}`);
  };
  for (const rows of [1, 7, 33]) {
    const parts = await byRows(device, model, params, texts, { rows });
    for (const k of texts.keys()) same(parts[k], k, `in parts of ${rows}`);
  }
  const last = texts.length - 1;
  same((await byRows(device, model, params, [texts[last]]))[0], last, 'alone');
  return together;
}

/** All of the above for a model whose rows see what whole texts see. `most`: how far a log-odd may be off. */
export async function checkRows(
  device: CpuDevice,
  model: Model,
  params: ParamTree,
  texts: readonly Text[],
  most = 1e-4,
): Promise<void> {
  assert.equal(whyNotRows(model), null);
  const together = await sameInParts(device, model, params, texts);
  texts.forEach((text, k) => {
    const off = largest(together[k], whole(device, model, params, text));
    assert.ok(off < most, `text ${k}: log-odds are off by ${off}`);
  });
  const { vocab } = model.spec;
  const expected = texts.map(({ tokens, encoder }) => {
    const all = [...tokens];
    for (let k = 0; k < 9; k++) all.push(argmax(whole(device, model, params, { tokens: all, encoder }).slice(-vocab)));
    return all.slice(tokens.length);
  });
  assert.deepEqual(await continued(device, model, params, texts, expected), expected);
  // Room for one text: the others wait, or start over.
  assert.deepEqual(await continued(device, model, params, texts, expected, { cacheBytes: 1 }), expected);
}
