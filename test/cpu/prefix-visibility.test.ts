// Decoders with a prefix that sees itself, and with hidden tokens: which token reaches which logit, by changing each.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { buildModel } from '../../src/model/model.ts';
import { forwardContext } from '../../src/nn/index.ts';
import { noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import '../../src/tricks/index.ts';
import { configOf, perturbedParams, smallSpec } from '../support/small-models.ts';
import { tokens } from '../support/two-stacks.ts';

const device = new CpuDevice();
const T = 14;

interface Masks {
  readonly segments?: readonly number[];
  readonly visible?: readonly number[];
  readonly keep?: readonly number[];
}

/** reach[i][j]: whether a change of token j changes the logits of token i, in a model with one block. */
function reach(masks: Masks, compute: 'f32' | 'bf16'): boolean[][] {
  // One block: what a token sees is what attention lets it see.
  const spec = smallSpec({ depth: 1, attention: { kind: 'full', heads: 2 } });
  const model = buildModel(spec);
  const params = perturbedParams(model, device);
  model.prepare(device);
  const ids = (x: readonly number[]): Tensor => Tensor.from(device, [...x], [1, x.length], 'i32');
  const of = (list: readonly number[]): number[][] => {
    const out = scope(() =>
      noGrad(() => {
        const c = forwardContext({ device, compute });
        const { segments, visible, keep } = masks;
        const inputs = { inputs: ids(list), segments: segments ? ids(segments) : null, positions: null };
        const more = { visible: visible ? ids(visible) : null, keep: keep ? ids(keep) : null };
        return model.logits(params, model.hidden(params, { ...inputs, ...more }, c), c).dataSync();
      }),
    );
    return list.map((_, t) => Array.from(out.slice(11 * t, 11 * t + 11)));
  };
  const row = tokens('row', T);
  const base = of(row);
  const columns = row.map((id, j) => of(row.with(j, (id + 5) % 11)).map((l, i) => l.some((x, k) => x !== base[i][k])));
  return row.map((_, i) => row.map((_, j) => columns[j][i]));
}

const table = (sees: (i: number, j: number) => boolean): boolean[][] =>
  Array.from({ length: T }, (_, i) => Array.from({ length: T }, (_, j) => i === j || sees(i, j)));

for (const compute of ['f32', 'bf16'] as const)
  describe(compute, () => {
    test('no mask: causal', () => {
      assert.deepEqual(
        reach({}, compute),
        table((i, j) => j <= i),
      );
    });

    test('a prefix sees itself; what follows is causal', () => {
      const p = 5;
      const visible = Array.from({ length: T }, (_, i) => (i <= p ? p : -1));
      assert.deepEqual(
        reach({ visible }, compute),
        table((i, j) => j <= (i <= p ? p : i)),
      );
    });

    test('prefixes of two segments', () => {
      const segments = Array.from({ length: T }, (_, i) => (i < 6 ? 1 : 2));
      const visible = Array.from({ length: T }, (_, i) => (i <= 2 ? 2 : i >= 6 && i <= 9 ? 9 : -1));
      const sees = (i: number, j: number): boolean => segments[i] === segments[j] && j <= Math.max(i, visible[i]);
      assert.deepEqual(reach({ segments, visible }, compute), table(sees));
    });

    test('hidden tokens are seen by themselves only, and still predict', () => {
      const keep = Array.from({ length: T }, (_, j) => (j % 3 === 1 ? 0 : 1));
      assert.deepEqual(
        reach({ keep }, compute),
        table((i, j) => j <= i && keep[j] === 1),
      );
      const visible = Array.from({ length: T }, (_, i) => (i <= 7 ? 7 : -1));
      assert.deepEqual(
        reach({ keep, visible }, compute),
        table((i, j) => j <= (i <= 7 ? 7 : i) && keep[j] === 1),
      );
    });
  });

test('deeper models are causal outside of the prefix too', () => {
  const model = buildModel(smallSpec({ depth: 3 }));
  const params = perturbedParams(model, device);
  model.prepare(device);
  const p = 4;
  const logits = (list: readonly number[]): Float32Array =>
    scope(() =>
      noGrad(() => {
        const ids = (x: readonly number[]): Tensor => Tensor.from(device, [...x], [1, T], 'i32');
        const c = forwardContext({ device, compute: 'f32' });
        const visible = ids(Array.from({ length: T }, (_, i) => (i <= p ? p : -1)));
        return model
          .logits(params, model.hidden(params, { inputs: ids(list), segments: null, positions: null, visible }, c), c)
          .dataSync();
      }),
    ) as Float32Array;
  const row = tokens('row', T);
  const base = logits(row);
  for (let at = p + 1; at < T; at++) {
    const other = logits(row.with(at, (row[at] + 5) % 11));
    assert.deepEqual(other.slice(0, 11 * at), base.slice(0, 11 * at));
    assert.notDeepEqual(other.slice(11 * at, 11 * at + 11), base.slice(11 * at, 11 * at + 11));
  }
});

test('attention that is causal by construction is refused where a prefix must see itself', () => {
  const narrow = { kind: 'sparse-qkv', heads: 2, modules: 2 };
  const config = (objective: string) => () =>
    parseTrainConfig(configOf(smallSpec({ attention: narrow }), { objective }));
  for (const objective of ['prefix-lm', 'fcm']) assert.throws(config(objective), /causal by construction/);
});
