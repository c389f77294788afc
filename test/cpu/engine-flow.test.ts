/** Readers that are slow: their sequences wait, hold up nobody, and say the same when they go on. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { type DecodingOptions, type OpenDecoding, openDecoding } from '../../src/infer/decoding.ts';
import { type Finished, Flow } from '../../src/infer/engine/index.ts';
import { Sampler } from '../../src/infer/sampling/index.ts';
import { buildModel, type Model } from '../../src/model/model.ts';
import '../../src/tricks/index.ts';
import { disposeTree, initialise, type ParamTree } from '../../src/nn/index.ts';

const VOCAB = 61;
const LENGTH = 120;
const device = new CpuDevice();
const text = (n: number, seed: number): number[] =>
  Array.from({ length: n }, (_, k) => (k * k * seed + 5 * k + seed) % VOCAB);

/** A request whose reader takes what there is when it is told to. */
class Reading {
  readonly tokens: number[] = [];
  readonly flow = new Flow();
  readonly control = new AbortController();
  readonly done: Promise<Finished>;
  private took = 0;

  constructor(decoding: OpenDecoding, seed: number, more: object = {}) {
    const prompt = text(20 + seed, seed);
    this.done = decoding.submit({
      ...{ prompt, maxTokens: LENGTH, picker: new Sampler({ seed, temperature: 1 }), flow: this.flow },
      signal: this.control.signal,
      onToken: ({ token }) => {
        this.tokens.push(token);
        this.flow.made(1);
        return undefined;
      },
      ...more,
    });
  }

  take(): void {
    this.flow.taken(this.tokens.length - this.took);
    this.took = this.tokens.length;
  }

  /** Reads to the end, now and then. */
  async drain(): Promise<number[]> {
    let over = false;
    void this.done.then(() => {
      over = true;
    });
    while (!over) {
      this.take();
      await new Promise((go) => setTimeout(go, 1));
    }
    return this.tokens;
  }
}

async function until(test: () => boolean): Promise<void> {
  for (const end = Date.now() + 20_000; !test(); await new Promise((go) => setTimeout(go, 2)))
    if (Date.now() > end) throw new Error('waited in vain');
}

const kinds: Record<string, object> = {
  rows: {},
  encoder: { layout: { kind: 'encoder-decoder', encoderDepth: 1 } },
  'anew for every token': { recompute: true },
};
for (const [kind, { recompute, ...spec }] of Object.entries(kinds) as [string, { recompute?: boolean }][])
  describe(kind, () => {
    let model: Model;
    let params: ParamTree;
    const alone = new Map<number, number[]>();
    const more = kind === 'encoder' ? { encoder: text(40, 9) } : {};
    const open = (o: Partial<DecodingOptions> = {}): OpenDecoding =>
      openDecoding(device, model, params, { compute: 'f32', sequences: 2, recompute, ...o });

    before(async () => {
      const attention = { kind: 'full', heads: 4, kvHeads: 2 };
      model = buildModel({
        ...{
          vocab: VOCAB,
          context: 256,
          width: 32,
          depth: 2,
          attention,
          ffn: { kind: 'glu', hidden: 64 },
          embeddingStd: 0.5,
        },
        ...spec,
      });
      params = initialise(model, device, 3);
      const decoding = open();
      for (const seed of [1, 2, 3, 4, 5]) alone.set(seed, await new Reading(decoding, seed, more).drain());
      await decoding.close();
      assert.ok([...alone.values()].every((tokens) => tokens.length === LENGTH));
    });
    after(() => disposeTree(params));

    test('slow ones run ahead a little, and others go past them', async () => {
      const decoding = open();
      const slow = [1, 2, 3].map((seed) => new Reading(decoding, seed, more));
      await until(() => decoding.stats().paused === 3);
      const { running, waiting, steps } = decoding.stats();
      assert.deepEqual([running, waiting], [0, 0]);
      for (const r of slow) assert.ok(r.tokens.length > 50 && r.tokens.length <= 64, `${r.tokens.length}`);
      await new Promise((go) => setTimeout(go, 30));
      assert.equal(decoding.stats().steps, steps, 'nothing is computed for nobody');
      // More than there are places for.
      const quick = await Promise.all([4, 5].map((seed) => new Reading(decoding, seed, more).drain()));
      assert.deepEqual(quick, [alone.get(4), alone.get(5)]);
      assert.equal(decoding.stats().paused, 3);
      assert.deepEqual(
        await Promise.all(slow.map((r) => r.drain())),
        [1, 2, 3].map((seed) => alone.get(seed)),
      );
      assert.deepEqual([decoding.stats().paused, decoding.stats().pages.used], [0, 0]);
      await decoding.close();
    });

    test('those that are no longer wanted end, and so do all when it closes', async () => {
      const decoding = open();
      const [left, closed] = [1, 2].map((seed) => new Reading(decoding, seed, more));
      await until(() => decoding.stats().paused === 2);
      left.control.abort();
      assert.equal((await left.done).reason, 'cancelled');
      await until(() => decoding.stats().paused === 1);
      await decoding.close();
      assert.equal((await closed.done).reason, 'cancelled');
    });

    if (!recompute)
      test('their pages go to others who need them; they say the same', async () => {
        // Pages for one text at full length: 256 tokens are 8 pages.
        const decoding = open({ cacheBytes: 1, sequences: 4 });
        const total = decoding.stats().pages.total;
        const slow = [1, 2].map((seed) => new Reading(decoding, seed, more));
        await until(() => decoding.stats().paused === 2);
        const quick = await Promise.all([3, 4, 5].map((seed) => new Reading(decoding, seed, more).drain()));
        assert.deepEqual(
          quick,
          [3, 4, 5].map((seed) => alone.get(seed)),
        );
        assert.ok(decoding.stats().preemptions > 0, `${total} pages are not enough for all`);
        assert.deepEqual(
          await Promise.all(slow.map((r) => r.drain())),
          [1, 2].map((seed) => alone.get(seed)),
        );
        assert.equal(decoding.stats().pages.used, 0);
        await decoding.close();
      });
  });
