// Files of quantised runs: what they hold is what the run computes with, code for code where the format allows it.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { Bits } from '../../src/infer/compress/quantize.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { declared, disposeTree, flatten } from '../../src/nn/index.ts';
import { dequantise, isBlock, noGrad, permute } from '../../src/tensor/index.ts';
import { latestCheckpoint, saveCheckpoint } from '../../src/train/run/checkpoint.ts';
import type { RunFolder } from '../../src/train/run/folder.ts';
import { loadModel } from '../../src/train/session.ts';
import { tensorSource } from '../../src/train/stored.ts';
import { ansatz, resultOf } from '../support/cli.ts';
import { apart, madeRun, relativeError, runLogits, smallTokenizer, t5, toGguf, toHf } from '../support/format-runs.ts';
import { dequantised, readGguf } from '../support/gguf-read.ts';
import { decoderLogits, readHf, t5Logits } from '../support/hf-reference.ts';
import { llamaPeer, type PeerHandle, peerMissing } from '../support/llama-peer.ts';
import { quantisedRun } from '../support/quantised-runs.ts';
import { temporaryFolder } from '../support/tiny-data.ts';
import '../../src/tricks/index.ts';

const root = temporaryFolder('export-quantised');
const tokenizer = smallTokenizer();
const ids = Array.from({ length: 40 }, (_, k) => (k * 37 + 11) % tokenizer.vocabSize);
let count = 0;
const place = (): string => join(root, String(count++));

type Spec = Omit<ModelSpecInput, 'vocab'>;
const even: Spec = {
  ...{ context: 64, width: 64, depth: 2, tied: false },
  attention: { kind: 'full', heads: 4, kvHeads: 2 },
  ffn: { kind: 'glu', hidden: 96 },
};
const experts: Spec = { ...even, ffn: { kind: 'moe', experts: 4, active: 2, expert: { kind: 'glu', hidden: 96 } } };
const interleaved: Spec = { ...even, positions: { kind: 'rope', interleaved: true } };
const specs: Record<string, Spec> = { even, experts, interleaved };

/** A run whose weights are the values that a quantised one's stand for. */
async function inFull(run: RunFolder, spec: Spec): Promise<RunFolder> {
  const other = await madeRun(place(), spec, { tokenizer });
  const { state } = (await latestCheckpoint(other))!;
  const { model, params } = await loadModel(run.config, (await latestCheckpoint(run))!);
  const shapes = new Map(declared(model).map((p) => [p.path, p.spec.shape.join()]));
  const plain = flatten(params).map(({ path, tensor }) => {
    if (!isBlock(tensor.dtype)) return { path, tensor };
    const t = noGrad(() => dequantise(tensor));
    return { path, tensor: t.shape.join() === shapes.get(path) ? t : noGrad(() => permute(t, [0, 2, 1])) };
  });
  await saveCheckpoint(other, 1, { tensors: { model: plain.map((p) => tensorSource(p.path, p.tensor)) }, state });
  disposeTree(params);
  return other;
}

async function made(spec: Spec, bits: Bits): Promise<RunFolder> {
  return quantisedRun(await madeRun(place(), spec, { tokenizer }), place(), bits);
}

const valuesIn = (path: string): Map<string, { type: number; values: number[] }> =>
  new Map(readGguf(path).tensors.map((t) => [t.name, { type: t.type, values: dequantised(t.type, t.bytes) }]));

describe('GGUF', () => {
  for (const [name, spec] of Object.entries(specs))
    for (const bits of [8, 4] as const)
      test(`${name}, ${bits} bits: q8_0 holds every weight exactly`, async () => {
        const run = await made(spec, bits);
        const [full, eight] = [place(), place()];
        await toGguf(await inFull(run, spec), full, 'f32');
        const { notes } = await toGguf(run, eight, 'q8_0');
        assert.equal(
          notes.some((n) => /uneven levels exactly/.test(n)),
          bits === 4,
        );
        const [wanted, got] = [valuesIn(full), valuesIn(eight)];
        assert.deepEqual([...got.keys()], [...wanted.keys()]);
        let taken = 0;
        for (const [tensor, { type, values }] of got) {
          const expected = wanted.get(tensor)!.values;
          // Gates of experts are factors on their weights: the scales are rounded to halves then.
          const most = name === 'experts' && /down/.test(tensor) ? 2 ** -11 : 0;
          values.forEach((x, k) => {
            assert.ok(
              Math.abs(x - expected[k]) <= most * Math.abs(expected[k]),
              `${tensor} ${k}: ${x}, ${expected[k]}`,
            );
          });
          taken += +(type === 8);
          assert.equal(type, /norm|gate_inp/.test(tensor) ? 0 : 8, tensor);
        }
        assert.ok(taken >= 2 * 7 + 2);
      });

  test('other types: their own rounding of the values, and a word about it', async () => {
    const run = await made(even, 4);
    const full = await inFull(run, even);
    for (const [type, note] of [
      ['f16', /written as f16 values/],
      ['bf16', /written as bf16 values/],
      ['f32', /written as f32 values/],
      ['q4_0', /rounded again, to the even steps of q4_0/],
    ] as const) {
      const [a, b] = [place(), place()];
      assert.match((await toGguf(run, a, type)).notes.join(), note);
      await toGguf(full, b, type);
      assert.deepEqual(valuesIn(a), valuesIn(b));
    }
  });

  test('the command takes q8_0 unless told otherwise', async () => {
    const run = await made(even, 4);
    const { type, out, notes } = resultOf(
      await ansatz(['export', run.path, '--to', 'gguf', '--out', place(), '--json']),
      'export',
    ) as unknown as { type: string; out: string; notes: string[] };
    assert.equal(type, 'q8_0');
    assert.equal(notes.length, 1);
    assert.equal(readGguf(out).metadata.get('general.file_type'), 7);
  });
});

describe('llama.cpp', { skip: peerMissing }, () => {
  let peer: PeerHandle;
  before(async () => {
    peer = await llamaPeer();
  });
  after(() => peer?.close());

  for (const [name, spec] of Object.entries(specs))
    for (const bits of [8, 4] as const)
      test(`${name}, ${bits} bits: the logits of the run, as far off as 8-bit activations`, async () => {
        const run = await made(spec, bits);
        const path = place();
        await toGguf(run, path, 'q8_0');
        const model = await peer.load(path);
        const theirs = await peer.logits(model, ids);
        await model.dispose();
        for (const [what, ours] of [
          ['its own', await runLogits(run, ids)],
          ['in full', await runLogits(await inFull(run, spec), ids)],
        ] as const) {
          const error = relativeError(theirs, ours);
          assert.ok(error < 0.03, `${what}: ${error}`);
        }
      });
});

describe('Hugging Face', () => {
  for (const [name, spec] of Object.entries(specs))
    test(`${name}: a float64 reader computes what the values stand for`, async () => {
      for (const bits of [8, 4] as const) {
        const run = await made(spec, bits);
        const hf = place();
        assert.match((await toHf(run, hf)).notes.join(), /written as f32 values/);
        const error = apart(await runLogits(await inFull(run, spec), ids), decoderLogits(readHf(hf), ids));
        assert.ok(error < 1e-4, `${bits} bits: ${error}`);
      }
    });

  test('an encoder-decoder, and bf16', async () => {
    const plain = await madeRun(place(), t5, { tokenizer, objective: 'prefix-lm' });
    const run = await quantisedRun(plain, place(), 8);
    const [hf, narrow] = [place(), place()];
    await toHf(run, hf);
    const given = ids.slice(0, 17);
    const error = relativeError(t5Logits(readHf(hf), given, ids), await runLogits(run, ids, given));
    assert.ok(error < 0.03, `${error}`);
    await toHf(run, narrow, 'bf16');
    const rounded = relativeError(t5Logits(readHf(narrow), given, ids), t5Logits(readHf(hf), given, ids));
    assert.ok(rounded > 0 && rounded < 0.02, `${rounded}`);
  });
});
