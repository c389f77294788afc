/** What a call leaves in scratch memory never reaches the next: a step with NaN does not poison those after it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { attentionPacked, gradients, mul, scope, sum, Tensor } from '../../src/tensor/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';

const device = new CpuDevice();
const [B, T, H, D] = [2, 150, 2, 24];

function gradient(values: Float32Array, window: number): Float32Array {
  return scope(() => {
    const qkv = Tensor.from(device, values, [B, T, 3 * H, D]).parameter();
    const y = attentionPacked(qkv, H, H, { causal: true, window });
    const [g] = gradients(sum(mul(y, y)), [qkv]);
    const out = g.dataSync() as Float32Array;
    qkv.dispose();
    return out;
  });
}

for (const window of [0, 40])
  test(`attention's gradient after one of NaN, window ${window}`, () => {
    const rng = new Rng(`scratch ${window}`);
    const values = Float32Array.from({ length: B * T * 3 * H * D }, () => rng.normal());
    const before = gradient(values, window);
    assert.ok(before.every(Number.isFinite));
    for (let k = 0; k < 3; k++)
      gradient(
        values.map(() => Number.NaN),
        window,
      );
    assert.deepEqual(gradient(values, window), before);
  });
