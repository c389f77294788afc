// The simple recurrent unit: against its definition, in parts, across documents; the layer that it stands in.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { buildModel } from '../../src/model/model.ts';
import { countParams } from '../../src/nn/index.ts';
import { concat, gradients, mul, slice, sru, sum, Tensor } from '../../src/tensor/index.ts';
import { accountFor } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { sruCosts } from '../../src/tricks/terraformer/index.ts';
import { checkDirections } from '../support/direction.ts';
import { refValues } from '../support/ref-values.ts';
import { checkCausality, normalTensor } from '../support/slot-layer.ts';
import { batchOn, configOf, hostBatch, smallSpec } from '../support/small-models.ts';

const device = new RefDevice();
const [B, T, n] = [2, 9, 5];
const [x, z] = [normalTensor(device, 'x', [B, T, n]), normalTensor(device, 'z', [B, T, 3 * n])];
const near = (a: ArrayLike<number>, b: ArrayLike<number>): void => {
  assert.equal(a.length, b.length);
  for (let k = 0; k < a.length; k++) assert.ok(Math.abs(a[k] - b[k]) < 1e-12, `${k}: ${a[k]}, ${b[k]}`);
};

describe('the scan', () => {
  test('is the loop over tokens', () => {
    const { out, state } = sru(x, z);
    const [xs, zs] = [refValues(x), refValues(z)];
    const sigmoid = (v: number): number => 1 / (1 + Math.exp(-v));
    for (let b = 0; b < B; b++)
      for (let j = 0; j < n; j++) {
        let c = 0;
        for (let t = 0; t < T; t++) {
          const [r, f, y] = [0, 1, 2].map((part) => zs[(b * T + t) * 3 * n + part * n + j]);
          c = sigmoid(f) * c + (1 - sigmoid(f)) * y;
          const at = (b * T + t) * n + j;
          near([refValues(state)[at]], [c]);
          near([refValues(out)[at]], [sigmoid(r) * c + Math.sqrt(3) * (1 - sigmoid(r)) * xs[at]]);
        }
      }
  });

  test('in parts, each starting from the state of the one before, gradients included', () => {
    const [u, v] = [x.detach(), z.detach()];
    u.requiresGrad = true;
    v.requiresGrad = true;
    const weights = normalTensor(device, 'weights', [B, T, n]);
    const whole = sru(u, v).out;
    const parts: Tensor[] = [];
    let initial: Tensor | null = null;
    for (const [from, to] of [
      [0, 4],
      [4, 5],
      [5, T],
    ]) {
      const part = sru(slice(u, 1, from, to), slice(v, 1, from, to), { initial });
      parts.push(part.out);
      const last = slice(part.state, 1, to - from - 1, to - from);
      initial = sum(last, [1]);
    }
    const joined = concat(parts, 1);
    near(refValues(joined), refValues(whole));
    const [a, b] = [joined, whole].map((y) => gradients(sum(mul(y, weights)), [u, v]));
    a.forEach((g, k) => {
      near(refValues(g), refValues(b[k]));
    });
  });

  test('begins anew in every segment, and only there', () => {
    const segments = Tensor.from(device, [1, 1, 1, 2, 2, 2, 2, 0, 0, 1, 1, 1, 2, 2, 2, 2, 0, 0], [B, T], 'i32');
    const both = refValues(sru(x, z, { segments }).out);
    const cuts: [number, number][] = [
      [0, 3],
      [3, 7],
      [7, 9],
    ];
    const apart = concat(
      cuts.map(([from, to]) => sru(slice(x, 1, from, to), slice(z, 1, from, to)).out),
      1,
    );
    near(both, refValues(apart));
    assert.notDeepEqual(Array.from(both), Array.from(refValues(sru(x, z).out)));
  });
});

const ffn = { kind: 'sru-ffn', units: 4, inner: { kind: 'glu', hidden: 10 } };

describe('the layer', () => {
  test('gradients, in a decoder', () =>
    checkDirections(device, smallSpec({ ffn }), batchOn(device, hostBatch('b', 11, 2, 7, true), 2, 7)));
  test('no look ahead, no look across documents, with no attention to speak of', () =>
    checkCausality(device, smallSpec({ ffn, attention: { kind: 'full', heads: 2, window: 1 }, positions: 'none' })));
  test('parameters and FLOPs by formula', () => {
    for (const [width, units] of [
      [12, 4],
      [32, 32],
    ]) {
      const spec = (f: typeof ffn | { kind: string; hidden: number }) => smallSpec({ width, ffn: f, depth: 3 });
      const of = (f: Parameters<typeof spec>[0]) => accountFor(parseTrainConfig(configOf(spec(f), { length: 8 })));
      const [plain, with_] = [of({ kind: 'glu', hidden: 10 }), of({ ...ffn, units })];
      const closed = sruCosts(width, units);
      assert.equal(with_.parameters, plain.parameters + 3 * closed.parameters);
      assert.equal(with_.forwardFlopsPerToken, plain.forwardFlopsPerToken + 3 * closed.flops);
      assert.equal(countParams(buildModel(spec({ ...ffn, units }))), with_.parameters);
    }
  });
});
