// Mixtures of experts on the CPU: equalities that hold to the bit, and drops.
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { buildSlot, type ForwardContext, flatten, forwardContext, type ParamTree } from '../../src/nn/index.ts';
import { add, gradients, mul, RandomState, route, scope, sum, Tensor } from '../../src/tensor/index.ts';
import { capacityOf } from '../../src/tricks/moe/options.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { type Layer, moeLayer, normals, outputOf } from '../support/moe-layer.ts';

const device = new CpuDevice();
const { threads } = device.info();
after(() => device.useThreads(threads));

const d = 24;
const glu = { kind: 'glu', hidden: 20 };
const dropless = { kind: 'moe', experts: 8, active: 2, expert: glu };
const capacity = (o: object) => ({ kind: 'capacity', convention: 'tokens', minimum: 1, ...o });

describe('one expert is the dense layer, to the bit', () => {
  for (const [kind, gate] of [
    ['glu', 'softmax'],
    ['mlp', 'renormalised'],
  ] as const)
    test(`${kind}, ${gate} gate: output and gradients`, () => {
      const expert = { kind, hidden: 40 };
      const layer = moeLayer(device, { kind: 'moe', experts: 1, active: 1, gate, expert }, { width: d });
      const moe = new Map(flatten(layer.params).map((p) => [p.path, p.tensor]));
      const [up, down] = [moe.get('experts.up')!, moe.get('experts.down')!];
      const context = { dims: { width: d, depth: 1, vocab: 4, context: 8, tied: true }, positions: {}, headWidth: d };
      const scales = { embedding: 1, logits: 1, branch: 1, attention: () => 1 };
      const options = { kind, hidden: 40, bias: false, dropout: 0, activation: kind === 'glu' ? 'silu' : 'gelu' };
      const dense = buildSlot('ffn', options, { ...context, scales, layer: 0, zLoss: 0 });
      const flipped = new Float32Array(d * 40);
      down.dataSync().forEach((v, at) => {
        flipped[(at % d) * 40 + Math.floor(at / d)] = v;
      });
      const params: ParamTree = {
        up: Tensor.from(device, up.dataSync(), [up.shape[1], d]).parameter(),
        down: Tensor.from(device, flipped, [d, 40]).parameter(),
      };
      scope(() => {
        const run = (forward: Layer['mixer']['forward'], p: ParamTree, matrices: Tensor[]) => {
          const x = Tensor.from(device, normals('x', 2 * 9 * d), [2, 9, d]).parameter();
          const residual = Tensor.from(device, normals('r', x.size), x.shape);
          const y = forward(p, x, residual, forwardContext({ device, compute: 'f32' }));
          const loss = sum(mul(y, Tensor.from(device, normals('w', x.size), x.shape)));
          return [y, ...gradients(loss, [x, ...matrices])].map((t) => Array.from(t.dataSync()));
        };
        const [y, dx, dUp] = run(layer.mixer.forward, layer.params, [up]);
        const [y2, dx2, dUp2] = run(dense.forward, params, [params.up as Tensor]);
        assert.deepEqual([y, dUp], [y2, dUp2]);
        // The router adds its (zero) share to dx, and the hidden gradient comes from the transposed matrix.
        dx.forEach((v, k) => {
          assert.ok(Math.abs(v - dx2[k]) < 1e-5, `${v}, ${dx2[k]}`);
        });
      });
    });
});

describe('dropless routing', () => {
  const [B, T] = [3, 20];
  const x = normals('x', B * T * d);
  const rows = (flat: ArrayLike<number>, order: readonly number[]): Float64Array =>
    Float64Array.from({ length: flat.length }, (_, k) => flat[order[Math.floor(k / d)] * d + (k % d)]);

  for (const compute of ['f32', 'bf16'] as const)
    test(`shuffled tokens give shuffled outputs, to the bit (${compute})`, () => {
      const layer = moeLayer(device, dropless, { width: d });
      const order = new Rng('order').shuffled(Array.from({ length: B * T }, (_, t) => t));
      const changes = { compute, activation: compute };
      const plain = outputOf(layer, device, x, [B, T], changes);
      const shuffled = outputOf(layer, device, rows(x, order), [B, T], changes);
      assert.deepEqual(
        shuffled,
        order.map((t) => plain[t]),
      );
    });

  test('relabelled experts give the same outputs', () => {
    const layer = moeLayer(device, dropless, { width: d });
    const plain = outputOf(layer, device, x, [B, T]);
    const order = new Rng('experts').shuffled([0, 1, 2, 3, 4, 5, 6, 7]);
    for (const { path, tensor } of flatten(layer.params)) {
      if (!/^(router|experts)/.test(path)) continue;
      const [values, size] = [tensor.dataSync().slice(), tensor.size / 8];
      tensor.write(Float32Array.from(values, (_, k) => values[order[Math.floor(k / size)] * size + (k % size)]));
    }
    const relabelled = outputOf(layer, device, x, [B, T]);
    plain.flat().forEach((v, k) => {
      assert.ok(Math.abs(v - relabelled.flat()[k]) <= 1e-6 * Math.max(1, Math.abs(v)));
    });
  });

  test('a capacity that nobody reaches changes nothing, to the bit', () => {
    const free = outputOf(moeLayer(device, dropless, { width: d }), device, x, [B, T]);
    for (const scope of ['batch', 'sequence'] as const)
      for (const order of ['token', 'choice', 'priority'] as const) {
        const routing = capacity({ evalFactor: 8, scope, order, allowLeaks: true });
        const layer = moeLayer(device, { ...dropless, routing }, { width: d });
        assert.deepEqual(outputOf(layer, device, x, [B, T]), free);
      }
  });

  test('equal logits go to the first experts; extreme ones stay finite', () => {
    scope(() => {
      const r = route(Tensor.from(device, new Float64Array(5 * 8), [5, 8]), { k: 3, span: 5 });
      assert.deepEqual(Array.from(r.index.dataSync()), [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]);
    });
    for (const gate of ['softmax', 'renormalised', 'sigmoid'])
      for (const y of outputOf(moeLayer(device, { ...dropless, gate }, { width: d, routerScale: 1e4 }), device, x, [
        B,
        T,
      ]))
        assert.ok(y.every(Number.isFinite), gate);
  });

  test('padding is not served: its residual stays as it is', () => {
    const layer = moeLayer(device, { ...dropless, shared: 0 }, { width: d });
    const segments = Tensor.from(
      device,
      Array.from({ length: B * T }, (_, t) => (t % T < 15 ? 1 : 0)),
      [B, T],
      'i32',
    );
    const y = outputOf(layer, device, x, [B, T], { segments });
    const free = outputOf(layer, device, x, [B, T]);
    y.forEach((row, t) => {
      assert.deepEqual(row, t % T < 15 ? free[t] : row.map(() => 0));
    });
  });

  test('one token, and all tokens at one expert', () => {
    const layer = moeLayer(device, { ...dropless, active: 1 }, { width: d });
    const router = flatten(layer.params).find((p) => p.path === 'router')!.tensor;
    router.write(Float64Array.from({ length: 8 * d }, (_, k) => (Math.floor(k / d) === 5 ? x[k % d] : 0)));
    const same = Float64Array.from({ length: 17 * d }, (_, k) => x[k % d]);
    const many = outputOf(layer, device, same, [1, 17]);
    for (const row of many) assert.deepEqual(row, many[0]);
    const one = outputOf(layer, device, x.slice(0, d), [1, 1])[0];
    one.forEach((v, k) => {
      assert.ok(Math.abs(v - many[0][k]) < 1e-6);
    });
  });
});

describe('capacity', () => {
  const routed = (index: readonly number[][], E: number, C: number, order: 'token' | 'choice') =>
    scope(() => {
      const [n, k] = [index.length, index[0].length];
      const chosen = Tensor.from(device, index.flat(), [n, k], 'i32');
      const scores = Tensor.from(device, new Float64Array(n * E), [n, E]);
      return Array.from(route(scores, { k, span: n, capacity: C, order, chosen }).slot.dataSync());
    });

  test('hand-made choices: who is dropped follows from choice rank and token order', () => {
    const index = [
      [0, 1],
      [0, 1],
      [0, 2],
      [1, 0],
    ];
    const dropped = (order: 'token' | 'choice') => routed(index, 3, 2, order).flatMap((s, r) => (s < 0 ? [r] : []));
    // Expert 0 is asked by tokens 0, 1, 2 first and 3 second; expert 1 by token 3 first, 0 and 1 second.
    assert.deepEqual(dropped('choice'), [3, 4, 7]);
    assert.deepEqual(dropped('token'), [4, 6, 7]);
  });

  test('as many drops as the loads exceed the capacity', () => {
    const rng = new Rng('drops');
    for (let trial = 0; trial < 20; trial++) {
      const [E, C] = [rng.int(2, 9), rng.int(1, 12)];
      const index = Array.from({ length: 60 }, () => rng.shuffled(Array.from({ length: E }, (_, e) => e)).slice(0, 2));
      const loads = Array.from({ length: E }, (_, e) => index.flat().filter((x) => x === e).length);
      const over = loads.reduce((n, m) => n + Math.max(0, m - C), 0);
      for (const order of ['token', 'choice'] as const)
        assert.equal(routed(index, E, C, order).filter((s) => s < 0).length, over);
    }
  });

  test('random balanced routing drops what the specification computed', () => {
    const rng = new Rng('rate');
    for (const [E, factor, percent] of [
      [8, 1, 1.7],
      [16, 1, 2.4],
      [64, 1, 4.9],
      [64, 1.25, 0.13],
    ]) {
      let drops = 0;
      for (let trial = 0; trial < 20; trial++) {
        const index = Array.from({ length: 4096 }, () => [rng.int(0, E - 1)]);
        drops += routed(index, E, Math.floor((factor * 4096) / E), 'token').filter((s) => s < 0).length;
      }
      const rate = (100 * drops) / (20 * 4096);
      assert.ok(Math.abs(rate - percent) < 0.15 + 0.1 * percent, `E ${E}, factor ${factor}: ${rate}%`);
    }
  });

  test('conventions, rounding and the minimum', () => {
    const base = { ...capacity({}), factor: 1.25, evalFactor: 2, scope: 'batch', order: 'token', rounding: 'truncate' };
    const of = (o: object, tokens: number, E: number, k: number, training = true) =>
      capacityOf({ ...base, ...o } as never, tokens, E, k, training);
    assert.deepEqual([of({}, 1000, 64, 2), of({ convention: 'assignments' }, 1000, 64, 2)], [19, 39]);
    assert.deepEqual([of({ rounding: 'round' }, 1000, 64, 2), of({}, 1000, 64, 2, false)], [20, 31]);
    assert.deepEqual([of({ minimum: 4 }, 100, 64, 1), of({ evalFactor: 0 }, 100, 64, 1, false)], [4, 0]);
  });

  test('what is dropped is missing; the gates of the others are not made larger', () => {
    const x = normals('x', 30 * d);
    const ffn = { ...dropless, active: 1 };
    const free = outputOf(moeLayer(device, ffn, { width: d }), device, x, [1, 30]);
    const layer = moeLayer(device, { ...ffn, routing: capacity({ evalFactor: 0.6 }) }, { width: d });
    const tight = outputOf(layer, device, x, [1, 30]);
    const kept = tight.filter((row, t) => row.every((v, k) => Math.abs(v - free[t][k]) < 1e-6)).length;
    const zero = tight.filter((row) => row.every((v) => v === 0)).length;
    assert.ok(zero > 3 && kept > 3);
    assert.equal(kept + zero, 30);
  });
});

test('results do not depend on the number of threads', () => {
  const [B, T] = [4, 100];
  const layer = moeLayer(device, { ...dropless, experts: 16, shared: 1 }, { width: 64 });
  const x = normals('x', B * T * 64);
  const run = (n: number) => {
    device.useThreads(n);
    return scope(() => {
      const input = Tensor.from(device, x, [B, T, 64]).parameter();
      const residual = Tensor.from(device, new Float64Array(x.length), [B, T, 64]);
      const c = forwardContext({ device, compute: 'bf16', training: true });
      const y = layer.mixer.forward(layer.params, input, residual, { ...c, activation: 'f32' });
      let loss = sum(mul(y, y));
      for (const term of c.losses.values()) loss = add(loss, term);
      const wrt = [input, ...flatten(layer.params).map((p) => p.tensor)].filter((t) => t.requiresGrad);
      layer.mixer.afterStep!(layer.params);
      return [y, ...gradients(loss, wrt)].map((t) => Buffer.from(t.dataSync().buffer).toString('base64'));
    });
  };
  const one = run(1);
  assert.deepEqual(run(2), one);
  assert.deepEqual(run(3), one);
});

describe('random choices', () => {
  const x = normals('x', 40 * d);
  const random = (step: number) => {
    const state = new RandomState(device, 7);
    state.setStep(step);
    return state;
  };
  const run = (ffn: Record<string, unknown>, changes: Partial<ForwardContext>) =>
    outputOf(moeLayer(device, ffn, { width: d }), device, x, [1, 40], changes);

  test('jitter acts in training only, and anew in every step', () => {
    const ffn = { ...dropless, active: 1, jitter: 0.3 };
    const plain = run({ ...ffn, jitter: 0 }, {});
    assert.deepEqual(run(ffn, {}), plain);
    const steps = [0, 0, 1].map((s) => run(ffn, { training: true, random: random(s) }));
    assert.deepEqual(steps[0], steps[1]);
    assert.notDeepEqual(steps[0], steps[2]);
    assert.notDeepEqual(steps[0], plain);
  });

  test('second choices: by threshold, or at random in training and all in evaluation', () => {
    const ffn = (second: string, secondThreshold = 0.2) => ({
      ...{ ...dropless, balanceLoss: 0, gateScale: 1 },
      routing: capacity({ factor: 8, evalFactor: 8, second, secondThreshold }),
    });
    const all = run(ffn('all'), {});
    assert.deepEqual(run(ffn('random'), {}), all);
    // A gate below every threshold of 1 drops the second choice: only the first, with its own weight, is left.
    const firstOnly = run(ffn('threshold', 1), {});
    assert.notDeepEqual(firstOnly, all);
    assert.deepEqual(run(ffn('threshold', 1e-6), {}), all);
    const same = (y: number[][], z: number[][]) =>
      y.filter((row, t) => JSON.stringify(row) === JSON.stringify(z[t])).length;
    const [mixed, likely] = [1, 0.2].map((tau) => run(ffn('random', tau), { training: true, random: random(3) }));
    assert.equal(same(mixed, all) + same(mixed, firstOnly), 40);
    assert.ok(same(mixed, all) > 3 && same(mixed, firstOnly) > 3);
    assert.ok(same(likely, all) > same(mixed, all));
  });
});
