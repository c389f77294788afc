// Weights in blocks on the CPU: errors within the bounds of the formats, the same bits for a row whatever comes with it
// and however many threads compute it, and products that stand where plain weights stood.
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { forwardContext } from '../../src/nn/index.ts';
import { linear, writeBranch } from '../../src/nn/linear.ts';
import * as T from '../../src/tensor/index.ts';
import { expertLinear } from '../../src/tricks/moe/expert.ts';
import { Rng } from '../support/kernel-cases/index.ts';

const device = new CpuDevice();
const { levels, level: initial, threads } = device.info();

after(() => {
  device.useLevel(initial);
  device.useThreads(threads);
});

const normals = (seed: string, shape: readonly number[], draw?: (rng: Rng) => number): T.Tensor => {
  const rng = new Rng(seed);
  const values = Float32Array.from({ length: T.sizeOfShape(shape) }, () => (draw ? draw(rng) : rng.normal()));
  return T.Tensor.from(device, values, shape);
};

const bytesOf = (t: T.Tensor): Buffer => {
  const bits = t.bitsSync();
  return Buffer.from(bits.buffer, bits.byteOffset, bits.byteLength);
};

const relative = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let [e, n] = [0, 0];
  for (let k = 0; k < b.length; k++) {
    e += (a[k] - b[k]) ** 2;
    n += b[k] ** 2;
  }
  return Math.sqrt(e / n);
};

describe('errors of the formats', () => {
  // On normal data: q8 0.54% and q4 7.3% (16 even steps with the best scale have 8.1%), of whatever size it is.
  const expected = { q8: [0.0051, 0.0057], q4: [0.07, 0.0755], bf16x16: [0.0015, 0.0019], f32x16: [0, 0] };
  for (const type of T.blockTypes)
    for (const level of levels)
      for (const scale of [1, 1e-6, 1e6])
        test(`${type} at ${level}, values of ${scale}`, () => {
          device.useLevel(level);
          const w = normals('errors', [96, 512], (rng) => rng.normal() * scale);
          const back = T.dequantise(T.quantise(w, type));
          const error = relative(back.dataSync(), w.dataSync());
          const [least, most] = expected[type];
          assert.ok(error >= least && error <= most, `relative error ${error}`);
        });

  test('no value is off by more than half a step of its group, clipped ends aside', () => {
    const w = normals('steps', [64, 256]);
    const values = w.dataSync();
    const back = T.dequantise(T.quantise(w, 'q8')).dataSync();
    for (let g = 0; g < values.length; g += 32) {
      let top = 0;
      for (let k = g; k < g + 32; k++) top = Math.max(top, Math.abs(values[k]));
      // The scale is a bfloat16: at most 2^-8 from top / 127, which the largest values may miss by.
      for (let k = g; k < g + 32; k++) assert.ok(Math.abs(values[k] - back[k]) <= top * (0.5 / 127 + 2 ** -8));
    }
  });

  test('q4 finds better scales than one that fits the largest value', () => {
    const w = normals('search', [64, 512]);
    const values = w.dataSync();
    const plain = Float32Array.from({ length: 64 * 16 }, (_, g) => {
      let top = 0;
      for (let k = g * 32; k < g * 32 + 32; k++) if (Math.abs(values[k]) > Math.abs(top)) top = values[k];
      return top / -127;
    });
    const scales = T.Tensor.from(device, plain, [64, 16]);
    const searched = relative(T.dequantise(T.quantise(w, 'q4')).dataSync(), values);
    const naive = relative(T.dequantise(T.quantise(w, 'q4', scales)).dataSync(), values);
    assert.ok(searched < 0.97 * naive, `${searched} against ${naive}`);
  });

  test('quantising what was quantised changes nothing', () => {
    for (const type of T.blockTypes) {
      const once = T.dequantise(T.quantise(normals('again', [40, 96]), type));
      const twice = T.dequantise(T.quantise(once, type));
      assert.ok(relative(twice.dataSync(), once.dataSync()) <= (type === 'q4' ? 0.005 : type === 'q8' ? 0.004 : 0));
    }
  });

  test('zeros stay zeros', () => {
    const w = normals('pruned', [32, 128], (rng) => (rng.chance(0.5) ? 0 : rng.normal()));
    const values = w.dataSync();
    for (const type of T.blockTypes) {
      const back = T.dequantise(T.quantise(w, type)).dataSync();
      values.forEach((v, k) => {
        if (v === 0) assert.equal(Math.abs(back[k]), 0);
      });
    }
  });

  test('an error of a product is no more than those of its factors allow', () => {
    const [R, N, K] = [4, 48, 320];
    const [x, w] = [normals('x', [R, K]), normals('w', [N, K])];
    const [xs, ws] = [x.dataSync(), w.dataSync()];
    for (const type of ['q8', 'q4'] as const) {
      const q = T.quantise(w, type);
      const [y, wq] = [T.matmul(x, q, { transB: true }).dataSync(), T.dequantise(q).dataSync()];
      for (let r = 0; r < R; r++)
        for (let n = 0; n < N; n++) {
          let [want, bound] = [0, 1e-5];
          for (let k = 0; k < K; k++) {
            let top = 0;
            const g = k - (k % 32);
            for (let j = g; j < g + 32; j++) top = Math.max(top, Math.abs(xs[r * K + j]));
            const dx = (top / 127) * 0.5001;
            const dw = Math.abs(wq[n * K + k] - ws[n * K + k]);
            want += xs[r * K + k] * ws[n * K + k];
            bound += Math.abs(ws[n * K + k]) * dx + Math.abs(xs[r * K + k]) * dw + dw * dx;
          }
          assert.ok(Math.abs(y[r * N + n] - want) <= bound);
        }
    }
  });
});

describe('a row has the same bits alone and in company', () => {
  for (const level of levels)
    for (const type of T.blockTypes)
      test(`${type} at ${level}: 1 to 70 rows`, () => {
        device.useLevel(level);
        const [N, K] = [72, 600];
        const q = T.quantise(normals('w', [N, K]), type);
        const [x, bias, addend] = [normals('x', [70, K]), normals('b', [N]), normals('a', [70, N])];
        for (const compute of ['f32', 'bf16'] as const) {
          const options = { transB: true, bias, compute, alpha: 0.7 };
          const all = bytesOf(T.matmul(x, q, { ...options, addend }));
          const row = N * 4;
          for (let R = 1; R < 70; R++)
            T.scope(() => {
              const first = R % 2 ? 0 : 70 - R; // from either end, so that rows change their places in a panel
              const some = T.slice(x, 0, first, first + R);
              const more = T.slice(addend, 0, first, first + R);
              const got = bytesOf(T.matmul(some, q, { ...options, addend: more }));
              assert.ok(got.equals(all.subarray(first * row, (first + R) * row)), `${R} rows, ${compute}`);
            });
        }
      });

  for (const type of T.blockTypes)
    test(`${type}: 1, 2 and 3 threads, 1 to 600 rows`, () => {
      const [N, K] = [333, 320];
      const q = T.quantise(normals('w', [N, K]), type);
      const x = normals('x', [600, K]);
      for (const R of [1, 2, 7, 33, 600]) {
        const some = T.slice(x, 0, 0, R);
        const [one, ...others] = [1, 2, 3].map((n) => {
          device.useThreads(n);
          return bytesOf(T.matmul(some, q, { transB: true }));
        });
        for (const other of others) assert.ok(other.equals(one), `${R} rows`);
      }
    });

  test('experts: a row does not depend on the sizes of groups', () => {
    for (const type of T.blockTypes) {
      const w = T.quantise(normals('experts', [4, 40, 96]), type);
      const x = normals('x', [30, 96]);
      const offsets = [0, 11, 11, 29, 30];
      const grouped = (rows: T.Tensor, from: readonly number[]): Buffer =>
        bytesOf(
          T.groupedMatmul(rows, w, { offsets: T.Tensor.from(device, from, [5], 'i32'), most: 30 }, { transB: true }),
        );
      const all = grouped(x, offsets);
      for (const [row, e] of [
        [0, 0],
        [10, 0],
        [17, 2],
        [29, 3],
      ]) {
        const alone = grouped(
          T.slice(x, 0, row, row + 1),
          [0, 1, 2, 3, 4].map((k) => +(k > e)),
        );
        assert.ok(alone.equals(all.subarray(row * 160, (row + 1) * 160)), `${type}, row ${row}`);
      }
    }
  });

  test('units: rows alone, together and in another order', () => {
    for (const type of ['q8', 'q4', 'bf16', 'f32'] as const)
      for (const level of levels) {
        device.useLevel(level);
        const [rows, d, F, N] = [70, 100, 160, 4];
        const records = T.packUnits(normals('up', [F, d]), normals('down', [F, d]), { type });
        const [x, addend] = [normals('x', [rows, d]), normals('a', [rows, d])];
        const rng = new Rng('choices');
        const choices = Array.from({ length: (rows * F) / N }, () => rng.int(0, N - 1));
        const choice = T.Tensor.from(device, choices, [rows, F / N], 'i32');
        const run = (order: readonly number[]): Buffer =>
          T.scope(() => {
            const pick = (t: T.Tensor): T.Tensor =>
              T.concat(
                order.map((r) => T.slice(t, 0, r, r + 1)),
                0,
              );
            const own = T.Tensor.from(
              device,
              order.flatMap((r) => choices.slice((r * F) / N, ((r + 1) * F) / N)),
              [order.length, F / N],
              'i32',
            );
            return bytesOf(T.sparseUnits(pick(x), own, records, { type, block: N, addend: pick(addend) }).y);
          });
        const all = bytesOf(T.sparseUnits(x, choice, records, { type, block: N, addend }).y);
        const line = (r: number): Buffer => all.subarray(r * d * 4, (r + 1) * d * 4);
        for (const order of [[0], [69], [3, 1, 2], Array.from({ length: 64 }, (_, k) => 69 - k)]) {
          const got = run(order);
          order.forEach((r, k) => {
            assert.ok(got.subarray(k * d * 4, (k + 1) * d * 4).equals(line(r)), `${type} at ${level}, row ${r}`);
          });
        }
      }
  });
});

test('instruction-set levels with fused multiply-adds agree to the bit, since sums of bytes are exact', () => {
  if (!levels.includes('avx512')) return;
  const x = normals('x', [13, 200]);
  for (const type of ['q8', 'q4', 'f32x16'] as const) {
    const q = T.quantise(normals('w', [50, 200]), type);
    const [a, b] = ['avx2', 'avx512'].map((level) => {
      device.useLevel(level);
      return bytesOf(T.matmul(x, q, { transB: true }));
    });
    assert.ok(a.equals(b), type);
  }
});

test('layers take weights in blocks in place of their own', () => {
  const c = forwardContext({ device, compute: 'bf16' });
  const [x, w, bias, residual] = [
    normals('x', [2, 5, 96]),
    normals('w', [40, 96]),
    normals('b', [40]),
    normals('r', [2, 5, 40]),
  ];
  T.noGrad(() => {
    for (const type of T.blockTypes) {
      const q = T.quantise(w, type);
      const same = T.dequantise(q);
      const close = (a: T.Tensor, b: T.Tensor): void => {
        assert.deepEqual([a.shape, a.dtype], [b.shape, b.dtype]);
        assert.ok(relative(a.dataSync(), b.dataSync()) < 0.012, type);
      };
      close(linear(x, q, c, { bias }), linear(x, same, c, { bias }));
      const o = { bias, scale: 0.5, dropout: 0 };
      close(writeBranch(x, q, residual, c, o), writeBranch(x, same, residual, c, o));
      const ids = T.Tensor.from(device, [3, 39, 0, 3], [2, 2], 'i32');
      assert.ok(bytesOf(T.embedding(q, ids)).equals(bytesOf(T.embedding(same, ids))));
    }
  });
});

test('the factored layer and experts take weights in blocks', () => {
  T.noGrad(() => {
    const [D, E, bias, x] = [
      normals('D', [3, 70]),
      normals('E', [20, 70]),
      normals('b', [60]),
      normals('x', [2, 4, 70]),
    ];
    const want = T.factoredLinear(x, D, E, { bias });
    for (const [type, most] of [
      ['f32x16', 1e-6],
      ['bf16x16', 0.004],
      ['q8', 0.012],
    ] as const) {
      const q = T.quantise(E, type);
      const got = T.factoredLinear(x, D, q, { bias });
      assert.deepEqual(got.shape, want.shape);
      assert.ok(relative(got.dataSync(), want.dataSync()) < most, type);
      const last = T.factoredLinear(T.slice(x, 0, 1, 2), D, q, { bias });
      assert.ok(bytesOf(last).equals(bytesOf(got).subarray(4 * 60 * 4)), `${type}: fewer rows`);
    }

    const c = forwardContext({ device, compute: 'f32' });
    const groups = { offsets: T.Tensor.from(device, [0, 3, 5], [3], 'i32'), most: 5 };
    const [h, down] = [normals('h', [5, 40]), normals('down', [2, 40, 24])];
    const packed = T.quantise(T.transpose(down, 1, 2), 'f32x16');
    const plain = expertLinear(h, down, groups, c, false).dataSync();
    assert.ok(relative(expertLinear(h, packed, groups, c, false).dataSync(), plain) < 1e-6);
  });
});

test('a captured product in blocks replays', async () => {
  const q = T.quantise(normals('w', [64, 128]), 'q4').keep();
  const x = normals('x', [1, 128]).keep();
  const step = T.capture(device, () => T.noGrad(() => T.matmul(x, q, { transB: true })));
  x.write(normals('other', [1, 128]).dataSync());
  await step.run();
  assert.ok(bytesOf(step.result).equals(bytesOf(T.matmul(x, q, { transB: true }))));
  step.dispose();
});

test('memory is what the formats say', () => {
  const before = device.memory().liveBytes;
  const q = T.scope(() => T.quantise(normals('w', [160, 640]), 'q4'));
  assert.equal(device.memory().liveBytes - before, 160 * 640 * 0.5625);
  q.dispose();
});
