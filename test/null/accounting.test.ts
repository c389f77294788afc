// accountFor() against closed formulas that are written here independently, and against the calls of a step.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Accounting, memoryId } from '../../src/backend/accounting.ts';
import { MetaDevice } from '../../src/backend/meta/device.ts';
import { buildModel } from '../../src/model/model.ts';
import { initialise } from '../../src/nn/index.ts';
import { accountFor } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { TrainStep } from '../../src/train/step.ts';
import { configOf, decoderFacts, decoderVariants } from '../support/small-models.ts';

describe('Accounting', () => {
  test('counts what is live, and the most that was', () => {
    const accounting = new Accounting();
    const memory = (bytes: number) => ({ dtype: 'u8' as const, elements: bytes, bytes, id: memoryId() });
    const [a, b, c] = [memory(10), memory(20), memory(5)];
    accounting.add(a);
    accounting.add(b);
    accounting.remove(a);
    accounting.add(c);
    assert.deepEqual(accounting.stats(7), { liveBytes: 25, peakBytes: 30, cachedBytes: 7, liveAllocations: 2 });
  });
});

describe('a dense decoder by formula', () => {
  for (const [name, spec] of Object.entries(decoderVariants))
    test(name, () => {
      const config = parseTrainConfig(configOf(spec, { batch: 3, length: 12 }));
      const account = accountFor(config);
      const facts = decoderFacts(config.model, 12);
      assert.equal(account.parameters, facts.parameters);
      assert.equal(
        Object.values(account.byRole).reduce((a, b) => a + b, 0),
        facts.parameters,
      );
      assert.equal(account.memory.parameters, 4 * facts.parameters);
      assert.equal(account.memory.optimiser, 8 * facts.parameters);
      const near = (got: number, want: number) => assert.ok(Math.abs(got - want) <= 1e-9 * want, `${got}, not ${want}`);
      // Two more: the weighted sum of the tokens' losses is a product as well.
      near(account.forwardFlopsPerToken, facts.matrixFlops + facts.attentionFlops + 2);
      near(account.modelFlopsPerToken, 3 * account.forwardFlopsPerToken);
    });
});

describe('a training step', () => {
  const spec = decoderVariants['glu, rms, rope, tied'];

  /** Products of a step's calls, by what does them. */
  function productsOf(accumulate: number): Record<string, number> {
    const config = parseTrainConfig(configOf(spec, { batch: 3, length: 12, accumulate }));
    const device = new MetaDevice();
    const model = buildModel(config.model);
    const step = new TrainStep(device, model, initialise(model, device, 1), config, 12);
    const sums: Record<string, number> = {};
    for (const { program, times } of step.programs)
      for (const { kernel, cost, ints } of program.calls) {
        // A product of two vectors is the weighted sum of the loss, not a layer.
        const key = kernel === 'matmul' && ints[1] === 1 && ints[2] === 1 ? 'dot' : kernel;
        sums[key] = (sums[key] ?? 0) + times * cost!.flops;
      }
    return sums;
  }

  test('the backward pass takes twice the products, attention 2.5 times', () => {
    const facts = decoderFacts(parseTrainConfig(configOf(spec)).model, 12);
    const tokens = 3 * 12;
    const sums = productsOf(1);
    assert.equal(sums.matmul, 3 * tokens * facts.layerFlops);
    assert.equal(sums.linear_cross_entropy, 3 * tokens * facts.headFlops);
    assert.equal(sums.attention, tokens * facts.attentionFlops);
    assert.equal(sums.attention_bwd, 2.5 * tokens * facts.attentionFlops);
    assert.equal(sums.adamw, 16 * facts.parameters);
  });

  test('micro-batches multiply the passes, not the update', () => {
    const [one, four] = [productsOf(1), productsOf(4)];
    for (const kernel of ['matmul', 'attention', 'attention_bwd', 'linear_cross_entropy'])
      assert.equal(four[kernel], 4 * one[kernel], kernel);
    assert.equal(four.adamw, one.adamw);
    const [a, b] = [1, 4].map((accumulate) =>
      accountFor(parseTrainConfig(configOf(spec, { batch: 3, length: 12, accumulate }))),
    );
    assert.ok(b.memory.other - a.memory.other >= 4 * a.parameters, 'gradient sums are counted');
    assert.ok(b.stepFlops > 3.9 * a.stepFlops * (1 - one.adamw / a.stepFlops));
  });

  test('the update moves 24 bytes a parameter and its gradient', () => {
    const config = parseTrainConfig(configOf(spec, { batch: 3, length: 12 }));
    const device = new MetaDevice();
    const model = buildModel(config.model);
    const step = new TrainStep(device, model, initialise(model, device, 1), config, 12);
    const update = step.programs[0].program.calls.filter((c) => c.kernel === 'adamw');
    const bytes = update.reduce((n, c) => n + c.cost!.bytes, 0);
    assert.equal(bytes, 28 * decoderFacts(config.model, 12).parameters);
  });
});

test('a model of 1.8T parameters is accounted for, without memory', () => {
  const config = parseTrainConfig(
    configOf(
      {
        vocab: 100_000,
        context: 8192,
        width: 32_768,
        depth: 120,
        attention: { kind: 'full', heads: 256, kvHeads: 32 },
        ffn: { kind: 'glu', hidden: 130_000 },
      },
      { batch: 1 },
    ),
  );
  const account = accountFor(config);
  const facts = decoderFacts(config.model, 8192);
  assert.equal(account.parameters, facts.parameters);
  assert.ok(account.parameters > 1.6e12 && account.parameters < 2e12, `${account.parameters}`);
  assert.ok(account.memory.total > 12 * account.parameters);
});
