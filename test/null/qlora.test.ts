// Differences of low rank on weights in blocks: gradients in float64 against finite differences, and against the same model
// with the values that the blocks stand for.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { inBlocks } from '../../src/infer/blocks.ts';
import { buildModel } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { declared, flatten, forwardContext, initialise, type ParamTree } from '../../src/nn/index.ts';
import { dequantise, gradients, isBlock, noGrad, permute, Tensor } from '../../src/tensor/index.ts';
import { withLora } from '../../src/train/lora.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { refValues } from '../support/ref-values.ts';
import { batchOn, hostBatch, perturbedParams, smallSpec } from '../support/small-models.ts';
import '../../src/tricks/index.ts';

const device = new RefDevice();
const specs: Record<string, ModelSpecInput> = {
  tied: smallSpec({ vocab: 12 }),
  'own output matrix, biases': smallSpec({
    ...{ vocab: 12, tied: false },
    attention: { kind: 'full', heads: 2, bias: true },
    ffn: { kind: 'glu', hidden: 20, bias: true },
  }),
  experts: smallSpec({
    vocab: 12,
    ffn: { kind: 'moe', experts: 3, active: 2, expert: { kind: 'glu', hidden: 10 } } as never,
  }),
};

/** A model on weights in blocks, and the same on their values. */
function both(spec: ModelSpecInput, type: 'q8' | 'q4') {
  const inner = buildModel(spec);
  const model = withLora(inner, { kind: 'lora', rank: 3, alpha: 5 });
  const blocks = inBlocks(inner, perturbedParams(inner, device), { matrices: type });
  const shapes = new Map(declared(inner).map((p) => [p.path, p.spec.shape.join()]));
  const values = (tree: ParamTree, prefix = ''): ParamTree =>
    Object.fromEntries(
      Object.entries(tree).map(([name, t]) => {
        const path = prefix + name;
        if (!(t instanceof Tensor)) return [name, values(t, `${path}.`)];
        if (!isBlock(t.dtype)) return [name, t];
        const plain = noGrad(() => dequantise(t));
        return [name, plain.shape.join() === shapes.get(path) ? plain : noGrad(() => permute(plain, [0, 2, 1]))];
      }),
    );
  const { lora } = model.children!;
  const own = initialise({ children: { lora } }, device, 7);
  const rng = new Rng('factors');
  for (const { tensor } of flatten(own)) {
    const values = refValues(tensor); // the memory itself
    for (let k = 0; k < values.length; k++) values[k] = 0.3 * rng.normal();
  }
  const frozen = (tree: ParamTree): ParamTree => {
    for (const { tensor } of flatten(tree)) tensor.requiresGrad = false;
    return tree;
  };
  const [a, b] = [frozen(blocks), frozen(values(blocks))].map((base) => ({ ...base, ...own }));
  model.prepare(device);
  const batch = batchOn(device, hostBatch('rows', 12, 2, 6, true), 2, 6);
  const loss = (params: ParamTree): Tensor =>
    model.loss(params, batch, forwardContext({ device, compute: 'f32' })).total;
  return { loss, blocks: a, plain: b, lora: flatten(own) };
}

for (const [name, spec] of Object.entries(specs))
  describe(name, () => {
    for (const type of ['q8', 'q4'] as const)
      test(`${type}: gradients of the differences are those of finite differences`, () => {
        const { loss, blocks, plain, lora } = both(spec, type);
        assert.ok(flatten(blocks).filter((p) => isBlock(p.tensor.dtype)).length > 5);
        const wrt = lora.map((p) => p.tensor);
        const [got, same] = [blocks, plain].map((params) => gradients(loss(params), wrt).map(refValues));
        const rng = new Rng('places');
        lora.forEach(({ path, tensor }, k) => {
          const values = refValues(tensor);
          got[k].forEach((g, at) => {
            assert.ok(
              Math.abs(g - same[k][at]) < 1e-9 * (1 + Math.abs(g)),
              `${path}[${at}]: ${g}, of values ${same[k][at]}`,
            );
          });
          for (let n = 0; n < 2; n++) {
            const at = rng.int(0, values.length - 1);
            const before = values[at];
            const side = (h: number): number => {
              values[at] = before + h;
              // With gradients on: that is the pass that is trained.
              return refValues(loss(blocks))[0];
            };
            const slope = (side(1e-5) - side(-1e-5)) / 2e-5;
            values[at] = before;
            assert.ok(
              Math.abs(slope - got[k][at]) < 1e-6 * (1 + Math.abs(slope)),
              `${path}[${at}]: ${got[k][at]}, not ${slope}`,
            );
          }
        });
      });
  });
