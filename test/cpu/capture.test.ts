// Captured steps: replays equal eager runs bit for bit, on an arena full of garbage, off the JavaScript thread, in order.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import type { Memory, Program } from '../../src/backend/device.ts';
import * as T from '../../src/tensor/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { opCases } from '../support/op-cases.ts';
import { inputsOn } from '../support/ref-values.ts';
import { batchOn, decoderVariants, hostBatch, smallSpec, stepOn } from '../support/small-models.ts';
import { turnsDuring } from '../support/turns.ts';

const device = new CpuDevice();

const bits = (t: T.Tensor): Buffer => {
  const data = t.bitsSync();
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
};

/** Overwrites a program's arena with bits that are NaN in every float dtype: what a kernel does not write shows. */
function poison(program: Program): void {
  const arena = Reflect.get(program, 'arena') as Memory;
  assert.ok(arena.bytes >= program.arenaBytes && arena.dtype === 'u8');
  device.write(arena, 0, new Uint8Array(arena.elements).fill(0xff));
}

function same(got: readonly T.Tensor[], want: readonly Buffer[], what: string): void {
  assert.equal(got.length, want.length);
  got.forEach((t, k) => {
    assert.ok(bits(t).equals(want[k]), `${what}: result ${k} (${t}) differs from the eager run`);
  });
}

const matrix = (rng: Rng, rows: number, cols: number): Float64Array =>
  Float64Array.from({ length: rows * cols }, () => rng.normal());

/** A program of random ops on [5, 6] tensors. The same seed makes the same ops. */
function randomProgram(seed: number, [x, w, ids]: readonly T.Tensor[]): T.Tensor[] {
  const rng = new Rng(seed);
  const known = [x, T.tanh(x)];
  const pick = (): T.Tensor => (rng.chance(0.7) ? known[known.length - 1 - rng.int(0, 1)] : rng.pick(known));
  const ops: (() => T.Tensor)[] = [
    () => T.add(pick(), pick()),
    () => T.mul(T.tanh(pick()), pick()),
    () => T.gelu(pick()),
    () => T.softmax(pick()),
    () => T.rmsNorm(pick(), null),
    () => T.matmul(pick(), w),
    () => T.matmul(pick(), w, { transB: true, compute: 'bf16', addend: pick() }),
    () => T.cast(T.silu(T.cast(pick(), 'bf16')), 'f32'),
    () => T.sub(pick(), T.mean(pick(), [0])),
    () => T.concat([T.slice(pick(), 0, 2), T.slice(pick(), 0, 0, 2)], 0),
    () => T.transpose(T.reshape(T.permute(pick(), [1, 0]), [6, 5])),
    () => T.embedding(pick(), ids),
    () => T.cumsum(T.affine(pick(), 0.1, 0.2), 1),
    () => T.scope(() => T.maximum(T.relu(pick()), T.neg(pick()))),
  ];
  for (let k = rng.int(5, 40); k > 0; k--) known.push(rng.pick(ops)());
  return [known[known.length - 1], pick(), T.sumsq(pick())];
}

describe('replays equal eager runs', () => {
  test('random programs, on a poisoned arena, with inputs that change', async () => {
    for (let seed = 0; seed < 60; seed++) {
      const rng = new Rng(`inputs ${seed}`);
      const inputs = T.scope(() => [
        T.Tensor.from(device, matrix(rng, 5, 6), [5, 6]).keep(),
        T.Tensor.from(device, matrix(rng, 6, 6), [6, 6]).keep(),
        T.Tensor.from(device, [4, 0, 0, 2, 1], [5], 'i32').keep(),
      ]);
      const captured = T.capture(device, () => randomProgram(seed, inputs));
      for (let round = 0; round < 3; round++) {
        inputs[0].write(matrix(rng, 5, 6));
        const want = T.scope(() => randomProgram(seed, inputs).map(bits));
        poison(captured.program);
        await captured.run();
        same(captured.result, want, `program ${seed}`);
      }
      captured.dispose();
      for (const t of [...inputs, ...captured.result]) t.dispose();
    }
  });

  test('every op case', async () => {
    for (const c of opCases) {
      if (c.large) continue;
      // What is updated in place would be updated twice.
      if (T.opTable.get(c.op)!.inPlace || c.op === 'momentum') continue;
      const inputs = inputsOn(device, c.inputs);
      const want = T.scope(() => c.run(inputs, device).map(bits));
      const captured = T.capture(device, () => c.run(inputs, device));
      poison(captured.program);
      await captured.run();
      same(captured.result, want, c.label);
      captured.dispose();
      for (const t of [...inputs, ...captured.result]) t.dispose();
    }
  });

  test('loss and gradients of decoders', async () => {
    for (const [name, spec] of Object.entries(decoderVariants))
      for (const compute of ['f32', 'bf16'] as const) {
        const step = stepOn(device, spec, { batch: 2, length: 9, segmented: true, compute });
        const want = T.scope(() => {
          const { loss, grads } = step.run();
          return [loss, ...grads].map(bits);
        });
        const captured = T.capture(device, step.run);
        poison(captured.program);
        await captured.run();
        same([captured.result.loss, ...captured.result.grads], want, `${name} ${compute}`);
        captured.dispose();
      }
  });

  test('results stay in their place and hold the newest run', async () => {
    const x = T.Tensor.from(device, [1, 2], [2]);
    const captured = T.capture(device, () => T.affine(x, 2, 1));
    const { memory } = captured.result.storage;
    assert.deepEqual([...captured.result.dataSync()], [3, 5]);
    x.write([10, 20]);
    assert.deepEqual([...captured.result.dataSync()], [3, 5]);
    await captured.run();
    assert.deepEqual([...(await captured.result.data())], [21, 41]);
    assert.equal(captured.result.storage.memory, memory);
    captured.dispose();
  });

  test('record() makes the same program and computes nothing', async () => {
    for (const [name, spec] of Object.entries(decoderVariants)) {
      const step = stepOn(device, spec, { batch: 2, length: 9, segmented: true, compute: 'bf16' });
      const [captured, recorded] = [T.capture(device, step.run), T.record(device, step.run)];
      const loss = captured.result.loss;
      await recorded.run();
      same([recorded.result.loss, ...recorded.result.grads], [loss, ...captured.result.grads].map(bits), name);
      captured.dispose();
      recorded.dispose();
    }
    const [total, one] = [T.zeros(device, [3]), T.ones(device, [3])];
    const increment = T.record(device, () => {
      T.accumulate(total, T.zeros(device, [3]));
      T.accumulate(total, one);
    });
    assert.deepEqual([...total.dataSync()], [0, 0, 0]);
    await increment.run();
    await increment.run();
    assert.deepEqual([...(await total.data())], [2, 2, 2]);
    increment.dispose();
  });

  test('random numbers are drawn anew when the step changes', async () => {
    const random = new T.RandomState(device, 3);
    const captured = T.capture(device, () => T.uniform(random, [100], 0));
    const draws: Buffer[] = [];
    for (const step of [0, 1, 0]) {
      random.setStep(step);
      await captured.run();
      draws.push(bits(captured.result));
    }
    assert.ok(draws[0].equals(draws[2]) && !draws[0].equals(draws[1]));
    captured.dispose();
  });

  test('profile() runs the step and times every call', async () => {
    const step = stepOn(device, smallSpec(), { batch: 2, length: 8 });
    const captured = T.capture(device, step.run);
    const want = bits(captured.result.loss);
    poison(captured.program);
    const times = await captured.program.profile();
    assert.equal(times.length, captured.program.calls.length);
    assert.ok(times.every((ns) => ns >= 0) && times.some((ns) => ns > 0));
    assert.ok(bits(captured.result.loss).equals(want));
    captured.dispose();
  });
});

describe('runs', () => {
  test('queue in order', async () => {
    const [total, one] = [T.zeros(device, [3]), T.ones(device, [3])];
    const increment = T.capture(device, () => T.accumulate(total, one));
    const double = T.capture(device, () => T.accumulate(total, total));
    T.assign(total, 0);
    const order: number[] = [];
    const runs = [increment, double, increment, double, increment].map((c, k) => c.run().then(() => order.push(k)));
    await Promise.all(runs);
    assert.deepEqual([...total.dataSync()], [7, 7, 7]);
    assert.deepEqual(order, [0, 1, 2, 3, 4]);
    increment.dispose();
    double.dispose();
  });

  test('are waited for by reads and by sync()', async () => {
    const [total, one] = [T.zeros(device, [1000]), T.ones(device, [1000])];
    const captured = T.capture(device, () => {
      for (let k = 0; k < 200; k++) T.accumulate(total, one);
    });
    T.assign(total, 0);
    const runs = Array.from({ length: 20 }, () => captured.run());
    assert.equal((await total.data())[999], 4000);
    runs.push(captured.run());
    await device.sync();
    assert.equal(total.dataSync()[0], 4200);
    await Promise.all(runs);
    captured.dispose();
  });

  test('leave the event loop free', async () => {
    const [a, b] = [T.zeros(device, [384, 384]), T.zeros(device, [384, 384])];
    const captured = T.capture(device, () => {
      let x = a;
      for (let k = 0; k < 40; k++) x = T.matmul(x, b);
      return x;
    });
    await captured.run();
    // All queued at once: nothing but turns runs on this thread until the last is done.
    const turns = await turnsDuring(() => Promise.all(Array.from({ length: 40 }, () => captured.run())));
    assert.ok(turns > 4 * 40, `${turns} turns during 40 runs`);
    captured.dispose();
  });

  test('one that meets a bad token id is refused and harms nothing', async () => {
    const spec = smallSpec();
    const step = stepOn(device, spec, { batch: 1, length: 4 });
    const captured = T.capture(device, step.run);
    const want = bits(captured.result.loss);
    const good = hostBatch('batch', spec.vocab, 1, 4).inputs;
    step.batch.inputs.write([1, 99, 2, 3]);
    await assert.rejects(captured.run(), /embedding: index 99 out of range: limit 11/);
    await assert.rejects(captured.program.profile(), /embedding: index 99 out of range: limit 11/);
    // Queued runs after a failed one still run; eager calls work.
    step.batch.inputs.write(good);
    await Promise.all([captured.run(), captured.run()]);
    assert.ok(bits(captured.result.loss).equals(want));
    step.batch.inputs.write([-3, 0, 0, 0]);
    const [bad, more] = [captured.run(), captured.run()];
    await assert.rejects(bad, /index -3 out of range/);
    await assert.rejects(more, /index -3 out of range/);
    T.scope(() => assert.deepEqual([...T.affine(T.ones(device, [2]), 2, 0).dataSync()], [2, 2]));
    captured.dispose();
  });

  test('an eager call that meets a bad id throws, and the next one works', () => {
    T.scope(() => {
      const table = T.ones(device, [3, 2]);
      const id = (v: number): T.Tensor => T.Tensor.from(device, [v], [1], 'i32');
      assert.throws(() => T.embedding(table, id(3)), /embedding: index 3 out of range: limit 3/);
      assert.deepEqual([...T.embedding(table, id(2)).dataSync()], [1, 1]);
    });
  });
});

describe('what a captured step may not do', () => {
  test('write host data', () => {
    const x = T.ones(device, [2]);
    assert.throws(() => T.capture(device, () => x.write([1, 2])), /host data was written inside a captured step/);
    assert.throws(
      () => T.capture(device, () => batchOn(device, hostBatch('b', 5, 1, 3), 1, 3)),
      /inside a captured step/,
    );
  });

  test('run after it was disposed', async () => {
    const captured = T.capture(device, () => T.ones(device, [2]));
    captured.dispose();
    captured.dispose();
    await assert.rejects(captured.run(), /was disposed/);
  });

  test('lose its arena to dispose() while it runs', async () => {
    const step = stepOn(device, smallSpec({ width: 48 }), { batch: 4, length: 16 });
    const captured = T.capture(device, step.run);
    const want = bits(captured.result.loss);
    for (let round = 0; round < 20; round++) {
      const again = T.capture(device, step.run);
      const running = again.run();
      again.dispose();
      // Would be given the arena's memory, had it been released already.
      const grabbed = device.allocate('u8', again.program.arenaBytes);
      device.write(grabbed, 0, new Uint8Array(grabbed.elements).fill(0xff));
      await running;
      assert.ok(bits(again.result.loss).equals(want));
      device.release(grabbed);
      for (const t of [again.result.loss, ...again.result.grads]) t.dispose();
    }
    captured.dispose();
  });

  test('use memory that was freed', () => {
    const x = T.ones(device, [2]);
    assert.throws(
      () =>
        T.capture(device, () => {
          const y = T.neg(x);
          x.dispose();
          return y;
        }),
      /uses memory that was freed: keep\(\) it/,
    );
  });
});

describe('freed tensors', () => {
  test('cannot be read or written', async () => {
    let gone: T.Tensor | undefined;
    T.scope(() => void (gone = T.ones(device, [2])));
    assert.throws(() => gone!.dataSync(), /was released/);
    await assert.rejects(gone!.data(), /was released/);
    assert.throws(() => gone!.write([1, 2]), /was released/);
  });
});
