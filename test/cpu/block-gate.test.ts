// Choices of block gates where logits tie, are infinite or are no numbers: blocks narrower and wider than a vector.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { blockGate, noGrad, scope, Tensor, zeros } from '../../src/tensor/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';

const cpu = new CpuDevice();
const ref = new RefDevice();

test('ties, infinities and NaN among logits are taken as the reference takes them, at every level', () => {
  const { levels, level } = cpu.info();
  const odd = [Number.NEGATIVE_INFINITY, Number.NaN, 2, 2, -1, 2, Number.NEGATIVE_INFINITY, 0.5];
  for (const N of [2, 4, 8, 16, 32, 6]) {
    // Blocks of every mix: of the eight values at some stride, of -inf alone, of NaN alone.
    const blocks = Array.from({ length: 9 }, (_, b) =>
      Array.from({ length: N }, (_, k) => (b < 7 ? odd[(k * (b + 1) + b) % 8] : odd[b - 7])),
    );
    const z = blocks.flat();
    const on = (device: CpuDevice | RefDevice): { choice: number[]; soft: number[] } =>
      scope(() =>
        noGrad(() => {
          const tensor = (values: number[], shape: number[]): Tensor => Tensor.from(device, values, shape);
          const h = tensor(
            z.map((_, k) => 1 + (k % 3)),
            [1, z.length],
          );
          const [t, c2, bias] = [tensor([0], [1, 1]), zeros(device, [z.length, 1]), tensor(z, [z.length])];
          const { choice } = blockGate(h, t, c2, { block: N, bias });
          const { out } = blockGate(h, t, c2, { block: N, bias, hard: tensor([0], [1]) });
          return { choice: [...choice.dataSync()], soft: [...out.dataSync()] };
        }),
      );
    const want = on(ref);
    for (const each of levels) {
      cpu.useLevel(each);
      const got = on(cpu);
      assert.deepEqual(got.choice, want.choice, `${each}, blocks of ${N}`);
      got.soft.forEach((x, k) => {
        const whole = blocks[Math.floor(k / N)].every((v) => !Number.isNaN(v));
        if (whole) assert.ok(Math.abs(x - want.soft[k]) < 1e-5, `${each}, blocks of ${N}: ${x}, not ${want.soft[k]}`);
        else if (Number.isNaN(z[k])) assert.ok(Number.isNaN(x), `${each}, blocks of ${N}: NaN spreads`);
      });
    }
  }
  cpu.useLevel(level);
});

test('what a row gets does not depend on how many rows its group has, to the bit', () => {
  const { levels, level } = cpu.info();
  const [n, F, N, r] = [23, 96, 8, 37];
  const normals = (name: string, size: number): Float64Array => {
    const rng = new Rng(name);
    return Float64Array.from({ length: size }, () => rng.normal());
  };
  const [h, t, c2] = [normals('h', n * F), normals('t', n * r), normals('c2', 2 * F * r)];
  // Soft masks show the logits' last bits. Row 0 is in the first of two groups, with `beside` - 1 others.
  const first = (beside: number): number[] =>
    scope(() =>
      noGrad(() => {
        const of = (values: Float64Array, shape: number[]): Tensor => Tensor.from(cpu, values, shape);
        const offsets = Tensor.from(cpu, [0, beside, n], [3], 'i32');
        const soft = { block: N, offsets, hard: zeros(cpu, [1]) };
        return [...blockGate(of(h, [n, F]), of(t, [n, r]), of(c2, [2, F, r]), soft).out.dataSync()].slice(0, F);
      }),
    );
  for (const each of levels) {
    cpu.useLevel(each);
    const alone = first(1);
    for (const beside of [2, 4, 5, 9, 23]) assert.deepEqual(first(beside), alone, `${each}: ${beside} rows`);
  }
  cpu.useLevel(level);
});
