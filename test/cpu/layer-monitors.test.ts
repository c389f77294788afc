// What a run says about its layers: balance of experts, use of units, in events and from running shares.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { forwardContext, measured, tensorOf } from '../../src/nn/index.ts';
import { noGrad, scope, zeros } from '../../src/tensor/index.ts';
import { activities } from '../../src/tricks/relu-l1/index.ts';
import { usageOf } from '../../src/tricks/sparse-ffn/index.ts';
import { normalTensor, slotLayer } from '../support/slot-layer.ts';
import { type TinyData, temporaryFolder, tinyConfig, tinyData, trainWhole, writeText } from '../support/tiny-data.ts';

const root = temporaryFolder('monitors');
const cpu = new CpuDevice();
let data: TinyData;
before(async () => {
  data = await tinyData(join(root, 'data'), writeText(join(root, 'text'), 'small'));
});

test('a run logs its layers with every evaluation', async () => {
  const sparse = { kind: 'sparse-ffn', hidden: 32, block: 8 };
  const overrides = [
    { layers: [1], ffn: { kind: 'moe', experts: 4, active: 2, expert: sparse } },
    { layers: [2], ffn: { kind: 'relu-l1', hidden: 48 } },
    { layers: [3], ffn: { kind: 'topk-ffn', hidden: 48, density: 0.25 } },
  ];
  const model = { depth: 5, ffn: sparse, overrides: [...overrides, { layers: [4], ffn: { kind: 'glu', hidden: 16 } }] };
  const config = tinyConfig(data, { batch: 2, steps: 4, evaluate: { every: 2, tokens: 64 }, model: model as never });
  const { events } = await trainWhole(join(root, 'run'), config);
  const said = events.filter((e) => e.event === 'layers');
  assert.deepEqual(
    said.map((e) => e.step),
    [2, 4],
  );
  const last = new Map(said[1].layers.map(({ layer, measures }) => [layer, measures]));
  assert.deepEqual([...last.keys()].sort(), [
    ...['blocks.0.ffn', 'blocks.1.ffn', 'blocks.1.ffn.experts', 'blocks.2.ffn', 'blocks.3.ffn'],
  ]);
  const of = (layer: string, name: string): number => last.get(layer)![name];
  assert.ok(of('blocks.1.ffn', 'loadEntropy') > 0.5 && of('blocks.1.ffn', 'loadEntropy') <= 1);
  assert.ok(of('blocks.1.ffn', 'maxVio') > 0 && of('blocks.1.ffn', 'maxVio') <= 3);
  for (const layer of ['blocks.0.ffn', 'blocks.1.ffn.experts']) {
    const [mean, least] = [of(layer, 'choiceEntropy'), of(layer, 'leastChoiceEntropy')];
    assert.ok(least > 0 && least <= mean && mean <= 1, `${layer}: ${least}, ${mean}`);
    assert.ok(of(layer, 'deadUnits') < 0.5);
  }
  // About half of the units of a ReLU layer at the start, also when only four passes have been seen.
  assert.ok(Math.abs(of('blocks.2.ffn', 'activeUnits') - 0.5) < 0.1, String(of('blocks.2.ffn', 'activeUnits')));
  assert.ok(Math.abs(of('blocks.3.ffn', 'activeUnits') - 0.25) < 0.08, String(of('blocks.3.ffn', 'activeUnits')));
});

describe('running shares', () => {
  const width = 16;
  const x = normalTensor(cpu, 'x', [2, 20, width]);
  const pass = ({ mixer, params }: ReturnType<typeof slotLayer>): void =>
    scope(() =>
      noGrad(() => {
        mixer.forward(params, x, zeros(cpu, x.shape), forwardContext({ device: cpu, compute: 'f32', training: true }));
      }),
    );

  test('shares of active units do not depend on how many passes have been seen', async () => {
    for (const ffn of [
      { kind: 'relu-l1', hidden: 24 },
      { kind: 'topk-ffn', hidden: 24, density: 0.3 },
    ]) {
      const layer = slotLayer(cpu, 'ffn', ffn, { width });
      pass(layer);
      const [one] = activities(layer.params);
      const [first] = await measured(layer.mixer, layer.params);
      for (let n = 0; n < 40; n++) pass(layer);
      const [more] = activities(layer.params);
      one.share.forEach((s, k) => {
        assert.ok(Math.abs(s * 40 - Math.round(s * 40)) < 1e-3, `a share of 40 tokens: ${s}`);
        assert.ok(Math.abs(s - more.share[k]) < 1e-4);
      });
      assert.ok(Math.abs(first.measures.activeUnits - one.share.reduce((a, b) => a + b, 0) / 24) < 1e-6);
    }
  });

  test('a unit that was chosen long ago counts as dead', () => {
    const layer = slotLayer(cpu, 'ffn', { kind: 'sparse-ffn', hidden: 16, block: 8, usageDecay: 0.9 }, { width });
    pass(layer);
    const before = usageOf(tensorOf(layer.params, 'usage').dataSync(), 8).dead;
    // From now on, the bias has every token choose the first unit of each block.
    tensorOf(layer.params, 'logitsBias').write(Float64Array.from({ length: 16 }, (_, j) => (j % 8 === 0 ? 100 : 0)));
    for (let n = 0; n < 200; n++) pass(layer);
    const now = usageOf(tensorOf(layer.params, 'usage').dataSync(), 8);
    assert.ok(before < 10, `${before} of 16 at first`);
    assert.equal(now.dead, 14);
    assert.ok(now.meanEntropy < 1e-3);
  });
});
