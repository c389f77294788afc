/**
 * Tricks compose: configs drawn from all kinds at once take three steps, stop after one, and go on to the same losses
 * from their checkpoint. A combination that cannot be is refused in one line before anything is made.
 */
import assert from 'node:assert/strict';
import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { AnsatzError } from '../../src/backend/errors.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { RunFolder } from '../../src/train/run/folder.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import {
  createRun,
  numbersLogged,
  type TinyData,
  temporaryFolder,
  tinyConfig,
  tinyData,
  trainRun,
  trainWhole,
  writeText,
} from '../support/tiny-data.ts';

const root = temporaryFolder('compose');
const DRAWS = Number(process.env.ANSATZ_COMPOSE ?? 200);
let data: TinyData;
before(async () => {
  data = await tinyData(join(root, 'data'), writeText(join(root, 'text'), 'small'));
});

const expert = { kind: 'glu', hidden: 32 };
const choices = {
  attention: [
    { kind: 'full', heads: 2 },
    { kind: 'full', heads: 4, kvHeads: 2, headWidth: 16 },
    { kind: 'full', heads: 2, window: 9, bias: true, dropout: 0.1 },
    { kind: 'sparse-qkv', heads: 2, modules: 2 },
    { kind: 'window', heads: 2, window: 9, period: 2 },
    { kind: 'lsh', heads: 2, chunk: 8 },
    { kind: 'lsh', heads: 2, chunk: 8, rounds: 3, dedupe: false, bias: true, dropout: 0.1 },
    { kind: 'block-sparse', heads: 4, kvHeads: 2, headWidth: 16, length: 4, stride: 2, size: 8, blocks: 3, window: 8 },
    { kind: 'hyena' },
    { kind: 'hyena', order: 3 },
    { kind: 'gated-conv', heads: 2, period: 0 },
    { kind: 'gated-conv', period: 2, heads: 2 },
  ],
  ffn: [
    { kind: 'glu', hidden: 64 },
    { kind: 'mlp', hidden: 64, activation: 'relu2', bias: true, dropout: 0.1 },
    { kind: 'moe', experts: 4, active: 2, expert },
    { kind: 'moe', experts: 4, active: 1, expert: { kind: 'sparse-ffn', hidden: 32, block: 8 } },
    { kind: 'sparse-ffn', hidden: 64, block: 8 },
    { kind: 'relu-l1', hidden: 64 },
    { kind: 'topk-ffn', hidden: 64 },
    { kind: 'sru-ffn', units: 8, inner: { kind: 'glu', hidden: 48 } },
  ],
  norm: ['rms', { kind: 'layer', bias: true }],
  positions: ['rope', 'xpos', 'alibi', 't5-bias', 'learned', 'none'],
  head: ['linear', { kind: 'factored', modules: 2 }],
  layout: [
    'decoder',
    'decoder',
    { kind: 'encoder-decoder', encoderDepth: 1 },
    'reversible',
    { kind: 'reversible', merge: 'concat', grid: 0 },
    { kind: 'terraformer', encoderDepth: 1 },
  ],
  parametrisation: ['standard', { kind: 'mup', baseWidth: 16 }],
  optimiser: ['adamw', 'lion', 'muon', 'adafactor'],
  objective: ['causal', 'causal', { kind: 'fcm' }, { kind: 'fim' }, { kind: 'prefix-lm' }, { kind: 'ul2', budget: 32 }],
} as const;

function draw(rng: Rng) {
  const pick = <T>(list: readonly T[]): T => list[rng.int(0, list.length - 1)];
  return tinyConfig(data, {
    steps: 3,
    batch: 2,
    accumulate: rng.int(1, 2),
    precision: pick(['f32', 'bf16'] as const),
    optimiser: pick(choices.optimiser),
    objective: pick(choices.objective),
    model: {
      vocab: 640,
      context: 64,
      attention: pick(choices.attention),
      ffn: pick(choices.ffn),
      norm: pick(choices.norm),
      positions: pick(choices.positions),
      head: pick(choices.head),
      layout: pick(choices.layout),
      parametrisation: pick(choices.parametrisation),
      tied: rng.chance(0.5),
      overrides: rng.chance(0.3) ? [{ layers: [0], ffn: { kind: 'glu', hidden: 48 } }] : [],
    },
    length: 32,
    data: { packing: pick(['stream', 'whole'] as const), crossDocuments: rng.chance(0.5) },
    checkpoint: { every: 1 },
  } as Parameters<typeof tinyConfig>[1]);
}

test(`${DRAWS} random combinations train, stop and go on`, async () => {
  const rng = new Rng(2026);
  let trained = 0;
  const refused = new Map<string, number>();
  for (let k = 0; k < DRAWS * 12 && trained < DRAWS; k++) {
    const config = draw(rng);
    const label = JSON.stringify(config);
    const [whole, parts] = [join(root, `${k}-whole`), join(root, `${k}-parts`)];
    try {
      parseTrainConfig(config);
      await trainWhole(whole, config);
    } catch (error) {
      assert.ok(error instanceof AnsatzError, `${label}: ${(error as Error).stack}`);
      assert.doesNotMatch(error.message, /\n|undefined|NaN/, label);
      const why = error.message.replace(/[\d.]+/g, 'n');
      refused.set(why, (refused.get(why) ?? 0) + 1);
      assert.ok(!existsSync(join(whole, 'checkpoints', '00000001')), `${label} was refused after a step`);
      rmSync(whole, { recursive: true, force: true });
      continue;
    }
    const numbers = await numbersLogged(whole);
    assert.ok(
      numbers.every((row) => row.every((x) => typeof x === 'string' || Number.isFinite(x))),
      label,
    );
    await trainRun(await createRun(parts, config), { stopAfter: 1 });
    await trainRun(RunFolder.open(parts), { resume: true });
    assert.deepEqual(await numbersLogged(parts), numbers, label);
    for (const folder of [whole, parts]) rmSync(folder, { recursive: true, force: true });
    trained++;
  }
  if (process.env.ANSATZ_COMPOSE_VERBOSE) console.log(trained, [...refused]);
  assert.equal(trained, DRAWS, `only ${trained} of the draws are legal: ${JSON.stringify([...refused])}`);
});
