/** Adapters beside the model that they were learned for: what they say, what they cost, that they keep out of each other's way. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import type OpenAI from 'openai';
import { openAdapter } from '../../src/infer/adapters.ts';
import { openDecoding } from '../../src/infer/decoding.ts';
import { openRun } from '../../src/infer/load.ts';
import { Sampler } from '../../src/infer/sampling/index.ts';
import { disposeTree } from '../../src/nn/index.ts';
import { open } from '../../src/serve/models/opening.ts';
import { Registry } from '../../src/serve/models/registry.ts';
import type { ServedModel } from '../../src/serve/models/served.ts';
import { RunFolder } from '../../src/train/run/folder.ts';
import { quantisedRun } from '../support/quantised-runs.ts';
import { metric, type Serving, serving, TinyRuns } from '../support/serve.ts';

const runs = new TinyRuns('serve-adapters');
const kinds = {
  dense: { model: { width: 192 } },
  reader: {
    model: { layout: { kind: 'encoder-decoder', encoderDepth: 1 }, context: 64 },
    objective: 'prefix-lm',
    length: 32,
  },
} as const;
const paths: Record<string, string> = {};
let s: Serving;
let client: OpenAI;

before(async () => {
  for (const [kind, config] of Object.entries(kinds)) {
    const from = (paths[kind] = await runs.train(kind, { ...config, precision: 'f32' } as never));
    // Large rates: an adapter that changes nothing would prove nothing.
    for (const [k, rank] of [2, 4, 8].entries())
      paths[`${kind}-${k}`] = await runs.train(`${kind}-${k}`, {
        ...{ ...config, precision: 'f32', from, seed: k, steps: 25 },
        ...{ adapter: { kind: 'lora', rank }, optimiser: { kind: 'adamw', lr: 0.03 } },
      } as never);
  }
  s = await serving(paths, { data: join(runs.root, 'served') });
  client = s.client;
});

const names = (kind: string): string[] => [kind, ...[0, 1, 2].map((k) => `${kind}-${k}`)];

for (const kind of Object.keys(kinds))
  describe(kind, () => {
    test('scores and texts are those of the merged weights', async () => {
      const ids = [...(await runs.text()).prepared.tokenizer.encode('the small river follows the green window')];
      const base = await openRun(paths[kind]);
      const beside = openDecoding(base.device, base.model, base.params, { compute: 'f32' });
      const more = base.model.encoder ? { encoder: ids.slice(0, 6) } : {};
      const logits = async (decoding: typeof beside, variant?: number): Promise<Float32Array[]> => {
        const all: Float32Array[] = [];
        const pick = (l: Float32Array) => {
          all.push(l.slice());
          return { token: ids[all.length % ids.length], logprob: null };
        };
        await decoding.submit({ prompt: ids, maxTokens: 6, picker: { pick }, variant, onToken: () => true, ...more });
        return all;
      };
      const plain = await logits(beside);
      for (const name of names(kind).slice(1)) {
        const adapter = (await openAdapter(paths[name], base))!;
        const { variant, close } = await beside.adapt!(adapter.differences);
        const merged = await openRun(paths[name]);
        const alone = openDecoding(merged.device, merged.model, merged.params, { compute: 'f32' });
        const [got, wanted] = [await logits(beside, variant), await logits(alone)];
        let [error, change] = [0, 0];
        wanted.forEach((w, k) => {
          w.forEach((x, n) => {
            error = Math.max(error, Math.abs(x - got[k][n]));
            change = Math.max(change, Math.abs(x - plain[k][n]));
          });
        });
        assert.ok(error < 2e-5 && change > 0.02, `${name}: ${error} from the merged, which is ${change} from the base`);
        close();
        adapter.dispose();
        await alone.close();
        disposeTree(merged.params);
      }
      assert.deepEqual(await logits(beside), plain, 'the base is as it was');
      await beside.close();
      disposeTree(base.params);
    });

    test('an answer does not depend on what other adapters do at the time, to the bit', async () => {
      const base = await openRun(paths[kind]);
      const ids = [...(await runs.text()).prepared.tokenizer.encode('the small river')];
      const decoding = openDecoding(base.device, base.model, base.params, { compute: 'f32', sequences: 8 });
      const adapters = await Promise.all(
        names(kind)
          .slice(1)
          .map((name) => openAdapter(paths[name], base)),
      );
      const variants = [0];
      for (const a of adapters) variants.push((await decoding.adapt!(a!.differences)).variant);
      const ask = async (k: number): Promise<[number[], number[]]> => {
        const tokens: number[] = [];
        const logprobs: number[] = [];
        await decoding.submit({
          ...{ prompt: [...ids, ...ids.slice(0, k % 3)], maxTokens: 10 + k, variant: variants[k % variants.length] },
          ...(base.model.encoder && { encoder: ids }),
          picker: new Sampler({ seed: k, logprobs: 0 }),
          onToken: (p) => {
            tokens.push(p.token);
            logprobs.push(p.logprob!);
            return true;
          },
        });
        return [tokens, logprobs];
      };
      const all = Array.from({ length: 12 }, (_, k) => k);
      const alone: [number[], number[]][] = [];
      for (const k of all) alone.push(await ask(k));
      const steps = decoding.stats().steps;
      assert.deepEqual(await Promise.all(all.map(ask)), alone);
      assert.ok(decoding.stats().steps - steps < steps / 3, 'they shared steps');
      await decoding.close();
      for (const a of adapters) a!.dispose();
      disposeTree(base.params);
    });
  });

describe('the server', () => {
  const ask = async (model: string, seed = 1): Promise<string> => {
    const messages = [{ role: 'user', content: 'the small river follows' }];
    const r = await client.chat.completions.create({ model, messages, max_tokens: 12, seed } as never);
    return r.choices[0].message.content!;
  };

  test('keeps adapters apart: their bytes are few, their texts their own', async () => {
    const whole = await metric(s.url, 'ansatz_weight_bytes{model="dense"}');
    const texts = new Set<string>();
    for (const name of names('dense').slice(1)) {
      const own = await metric(s.url, `ansatz_weight_bytes{model="${name}",base="dense"}`);
      assert.ok(own > 0 && own < whole / 2, `${own} of ${whole} bytes`);
      texts.add(await ask(name));
    }
    assert.equal(texts.size, 3);
    const { data } = (await (await fetch(`${s.url}/ansatz/models`)).json()) as {
      data: { id: string; base: string | null }[];
    };
    assert.deepEqual(
      data.map((m) => [m.id, m.base]).filter(([id]) => String(id).startsWith('dense')),
      names('dense').map((name, k) => [name, k === 0 ? null : 'dense']),
    );
    const text = await (await fetch(`${s.url}/metrics`)).text();
    assert.doesNotMatch(text, /sequences_running\{model="dense-0"\}/);
  });

  test('many at once say what each says alone', async () => {
    const models = [...names('dense'), ...names('reader')];
    const alone: string[] = [];
    for (const [k, model] of models.entries()) alone.push(await ask(model, k));
    assert.deepEqual(await Promise.all(models.map((model, k) => ask(model, k))), alone);
  });

  test('embeddings and looks inside are the adapter’s', async () => {
    const of = async (model: string) =>
      (await client.embeddings.create({ model, input: 'the river', encoding_format: 'float' })).data[0].embedding;
    assert.notDeepEqual(await of('dense-1'), await of('dense'));
    const inside = async (model: string) => {
      const body = JSON.stringify({ model, prompt: 'the small', completion: ' river', top: 1 });
      return (
        (await (await fetch(`${s.url}/ansatz/inspect`, { method: 'POST', body })).json()) as {
          tokens: { logprob: number }[];
        }
      ).tokens.at(-1)!.logprob;
    };
    const scored = await client.completions.create({
      model: 'dense-1',
      prompt: 'the small river',
      echo: true,
      logprobs: 0,
      max_tokens: 0,
    });
    assert.ok(Math.abs((await inside('dense-1')) - scored.choices[0].logprobs!.token_logprobs!.at(-1)!) < 1e-4);
    assert.notEqual(await inside('dense-1'), await inside('dense'));
  });

  test('an adapter alone, or beside other weights, is served as a model of its own', async () => {
    const lone = await serving({ lone: paths['dense-1'], other: paths.reader }, { data: join(runs.root, 'lone') });
    const r = await lone.client.chat.completions.create({
      model: 'lone',
      messages: [{ role: 'user', content: 'the small river follows' }],
      max_tokens: 12,
      seed: 1,
    } as never);
    assert.equal(r.choices[0].message.content, await ask('dense-1'));
    assert.ok((await metric(lone.url, 'ansatz_weight_bytes{model="lone"}')) > 1000);
  });

  test('the base may have fewer bits', async () => {
    const small = join(runs.root, 'small');
    await quantisedRun(RunFolder.open(paths.dense), small, 8);
    const q = await serving({ small, own: paths['dense-1'] }, { data: join(runs.root, 'quantised') });
    await metric(q.url, 'ansatz_weight_bytes{model="own",base="small"}');
    const scores = async (on: OpenAI, model: string): Promise<number[]> => {
      const r = await on.completions.create({
        model,
        prompt: 'the small river follows the',
        echo: true,
        logprobs: 0,
        max_tokens: 0,
      });
      return r.choices[0].logprobs!.token_logprobs as number[];
    };
    const [near, merged, base] = [
      await scores(q.client, 'own'),
      await scores(client, 'dense-1'),
      await scores(q.client, 'small'),
    ];
    const apart = (a: number[], b: number[]): number => Math.max(...a.map((x, k) => Math.abs(x - b[k])));
    assert.ok(apart(near, merged) < 0.2 * apart(base, merged), `${apart(near, merged)} and ${apart(base, merged)}`);
  });

  test('one whose requests run ends them and goes; the others go on', async () => {
    const registry = new Registry({ sequences: 4, queue: 8, lookup: false });
    const info = (name: string, tuned: boolean) => ({ name, created: 0, owner: 'me', tuned });
    const base = await open(info('dense', false), paths.dense, [], { sequences: 4, queue: 8, lookup: false });
    registry.add(base);
    for (const k of [0, 1, 2]) registry.addTuned(info(`ft:${k}`, true), paths[`dense-${k}`]);
    const run = async (model: ServedModel, maxTokens: number): Promise<string> => {
      const sampler = new Sampler({ seed: 5 });
      const done = await model.decoding.submit({ prompt: [1, 2, 3], maxTokens, picker: sampler, onToken: () => true });
      return done.reason;
    };
    const leases = await Promise.all([0, 1].map((k) => registry.lease(`ft:${k}`)));
    assert.equal(leases[0].model.base, 'dense');
    const [going, staying] = leases.map((l) => run(l.model, 100));
    const plain = run(base, 100);
    await registry.remove('ft:0');
    assert.equal(await going, 'cancelled');
    assert.deepEqual([await staying, await plain], ['length', 'length']);
    assert.throws(() => leases[0].model.decoding.submit({} as never), /closed/);
    // Another takes its place, under the same name if need be.
    registry.addTuned(info('ft:0', true), paths['dense-2']);
    const again = await registry.lease('ft:0');
    assert.equal(await run(again.model, 5), 'length');
    for (const l of [...leases, again]) l.release();
    await registry.close();
  });

  test('nothing happened that nobody thought of', () => assert.deepEqual(s.unforeseen, []));
});
