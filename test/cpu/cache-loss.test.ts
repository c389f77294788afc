// `ansatz evaluate --cache`: held-out loss through the decoder's pages, in every format, against the ordinary loss.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import type { CacheLoss } from '../../src/infer/cache-loss.ts';
import type { Evaluation } from '../../src/train/by-position.ts';
import { ansatz, failure, resultOf } from '../support/cli.ts';
import {
  type TinyData,
  temporaryFolder,
  tinyConfig,
  tinyData,
  trainWhole,
  writeGrammar,
} from '../support/tiny-data.ts';

const root = temporaryFolder('cache-loss');
let data: TinyData;
type Model = NonNullable<NonNullable<Parameters<typeof tinyConfig>[1]>['model']>;

/** A trained run; `model` changes its spec. */
async function trained(name: string, model: Model = {}, more: object = {}): Promise<string> {
  const path = join(root, name);
  await trainWhole(path, tinyConfig(data, { steps: 40, batch: 8, ...more, model }));
  return path;
}

async function evaluated(run: string, ...args: string[]): Promise<Evaluation & { caches: CacheLoss[] }> {
  const flags = ['f32', 'bf16', 'f16', 'int8'].flatMap((f) => ['--cache', f]);
  const r = resultOf(await ansatz(['evaluate', run, ...flags, ...args, '--json']), 'evaluate');
  return r as unknown as Evaluation & { caches: CacheLoss[] };
}

before(async () => {
  data = await tinyData(join(root, 'data'), writeGrammar(join(root, 'text')), 320);
});

describe('ansatz evaluate --cache', () => {
  test('f32 gives the ordinary loss, 16 bits nearly, 8 bits close; each really is another format', async () => {
    const r = await evaluated(await trained('plain', {}, { precision: 'f32' }));
    const [f32, bf16, f16, int8] = r.caches;
    assert.deepEqual(
      r.caches.map((c) => c.format),
      ['f32', 'bf16', 'f16', 'int8'],
    );
    for (const c of r.caches) assert.equal(c.targets, r.targets, 'every target counts, the last of a full row too');
    const off = (c: CacheLoss): number => Math.abs(c.loss / r.loss - 1);
    assert.ok(off(f32) < 1e-6, `${f32.loss}, not ${r.loss}`);
    assert.ok(Math.abs(f32.bitsPerByte / r.bitsPerByte - 1) < 1e-6);
    assert.ok(off(f16) < 1e-4 && off(bf16) < 1e-3 && off(int8) < 1e-2, `${[f16, bf16, int8].map(off)}`);
    assert.equal(new Set(r.caches.map((c) => c.loss)).size, 4, `${r.caches.map((c) => c.loss)}`);
    const bytes = r.caches.map((c) => c.bytesPerToken);
    assert.deepEqual([bytes[1], bytes[2]], [bytes[0] / 2, bytes[0] / 2]);
    assert.ok(bytes[3] > bytes[0] / 4 && bytes[3] < bytes[0] / 2, `${bytes}`);
  });

  test('rows across documents: what a token sees begins at the row', async () => {
    const whole = await evaluated(join(root, 'plain'), '--cross-documents', '--length', '96');
    assert.ok(Math.abs(whole.caches[0].loss / whole.loss - 1) < 1e-6, `${whole.caches[0].loss}, not ${whole.loss}`);
  });

  for (const merged of [false, true])
    test(`what an encoder reads, ${merged ? 'standing before the text' : 'looked at by cross attention'}`, async () => {
      const layout = { kind: 'encoder-decoder', encoderDepth: 1, merged };
      const run = await trained(`reads-${merged}`, { layout }, { objective: { kind: 'prefix-lm', closed: true } });
      const r = await evaluated(run);
      assert.equal(r.caches[0].targets, r.targets);
      assert.ok(Math.abs(r.caches[0].loss / r.loss - 1) < 1e-5, `${r.caches[0].loss}, not ${r.loss}`);
      assert.notEqual(r.caches[3].loss, r.caches[0].loss);
    });

  test('what is no format is refused', async () => {
    failure(await ansatz(['evaluate', join(root, 'plain'), '--cache', 'int3']), 2, /--cache cannot be 'int3'/, /int8/);
  });
});
