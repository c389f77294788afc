// The reference's reductions, products, attention and gathers against second formulations.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { AnsatzError } from '../../src/backend/errors.ts';
import { refOptions } from '../../src/backend/ref/index.ts';
import { Rng } from '../support/kernel-cases/index.ts';
import { callRef, distance, floats } from '../support/ref-call.ts';

const rng = new Rng('reference');
const normals = (n: number) => floats(n, () => rng.normal());
const zeros = (n: number) => new Float64Array(n);
const { NEGATIVE_INFINITY: MINUS_INF, NaN: NAN } = Number;

describe('reductions', () => {
  test('sums and extremes over each axis agree with loops in another order', () => {
    const [outer, R, inner] = [2, 3, 4];
    const x = normals(24);
    const column = (o: number, n: number) => [0, 1, 2].map((r) => x[o * 12 + r * 4 + n]);
    const expected = [0, 1].flatMap((o) => [0, 1, 2, 3].map((n) => column(o, n)));
    const run = (kernel: string, out = zeros(8) as Float64Array | Int32Array) => {
      callRef(kernel, { p: [out, x], i: [outer, R, inner] });
      return out;
    };
    assert.ok(
      distance(
        run('sum'),
        expected.map(([a, b, c]) => c + b + a),
      ) < 1e-14,
    );
    assert.ok(
      distance(
        run('mean'),
        expected.map(([a, b, c]) => (c + b + a) / 3),
      ) < 1e-14,
    );
    assert.ok(
      distance(
        run('prod'),
        expected.map(([a, b, c]) => c * b * a),
      ) < 1e-14,
    );
    assert.deepEqual(
      [...run('max')],
      expected.map((c) => c.toSorted((a, b) => b - a)[0]),
    );
    assert.deepEqual(
      [...run('argmin', new Int32Array(8))],
      expected.map((c) => c.indexOf(Math.min(...c))),
    );
  });

  test('nothing reduces to the identity, NaN spreads, ties go to the first', () => {
    const run = (kernel: string, x: number[], out: Float64Array | Int32Array = zeros(1)) => {
      callRef(kernel, { p: [out, Float64Array.from(x)], i: [1, x.length, 1] });
      return out[0];
    };
    assert.deepEqual([run('sum', []), run('prod', []), run('max', []), run('min', [])], [0, 1, MINUS_INF, -MINUS_INF]);
    assert.ok(Number.isNaN(run('max', [1, NAN, 3])) && Number.isNaN(run('min', [NAN, 3])));
    assert.equal(run('argmax', [1, 4, 4, 2], new Int32Array(1)), 1);
  });

  test('cumsum in its four forms', () => {
    const run = (reverse: number, exclusive: number) => {
      const out = zeros(4);
      callRef('cumsum', { p: [out, Float64Array.of(1, 2, 3, 4)], i: [1, 4, 1, reverse, exclusive] });
      return [...out];
    };
    assert.deepEqual(
      [run(0, 0), run(0, 1), run(1, 0), run(1, 1)],
      [
        [1, 3, 6, 10],
        [0, 1, 3, 6],
        [10, 9, 7, 4],
        [9, 7, 4, 0],
      ],
    );
  });

  test('softmax rows sum to 1, a row of -inf gives zeros, huge scores do not overflow', () => {
    const [rows, cols] = [4, 5];
    const x = floats(rows * cols, (k) => (k < 5 ? MINUS_INF : k < 10 ? 1e4 * rng.normal() : rng.normal()));
    const [y, log, lse] = [zeros(20), zeros(20), zeros(4)];
    callRef('softmax', { p: [y, x], i: [rows, cols] });
    callRef('log_softmax', { p: [log, x], i: [rows, cols] });
    callRef('logsumexp', { p: [lse, x], i: [rows, cols] });
    assert.deepEqual([...y.subarray(0, 5)], [0, 0, 0, 0, 0]);
    assert.equal(lse[0], MINUS_INF);
    for (let r = 1; r < rows; r++) {
      const row = y.subarray(r * cols, (r + 1) * cols);
      assert.ok(Math.abs(row.reduce((a, b) => a + b) - 1) < 1e-12);
      assert.ok(distance(row, log.subarray(r * cols, (r + 1) * cols).map(Math.exp)) < 1e-12);
    }
    const naive = Math.log(x.subarray(10, 15).reduce((sum, v) => sum + Math.exp(v), 0));
    assert.ok(Math.abs(lse[2] - naive) < 1e-12);
  });
});

describe('matmul', () => {
  test('the four transposes, batches and the sums around the product agree', () => {
    const [batch, M, N, K] = [3, 4, 5, 6];
    const [A, B, bias, addend] = [normals(batch * M * K), normals(K * N), normals(N), normals(batch * M * N)];
    const At = floats(batch * M * K, (n) => A[n - (n % (M * K)) + (n % M) * K + Math.floor((n % (M * K)) / M)]);
    const Bt = floats(K * N, (n) => B[(n % K) * N + Math.floor(n / K)]);
    const expected = floats(batch * M * N, (n) => {
      const [row, col] = [Math.floor(n / N), n % N];
      const products = Array.from({ length: K }, (_, k) => A[row * K + k] * B[k * N + col]);
      return -2 * products.reduceRight((a, b) => a + b, 0) + bias[col] + addend[n];
    });
    for (const [a, transA] of [
      [A, 0],
      [At, 1],
    ] as const) {
      for (const [b, transB] of [
        [B, 0],
        [Bt, 1],
      ] as const) {
        const C = addend.slice();
        callRef('matmul', { p: [C, a, b, bias, C], i: [batch, M, N, K, transA, transB, M * K, 0, M * N, 0], f: [-2] });
        assert.ok(distance(C, expected) < 1e-12);
      }
    }
  });

  test('compute = 1 rounds operands to bfloat16, unless that is switched off', () => {
    const [x, C] = [1 + 2 ** -9, zeros(1)];
    const run = () => {
      callRef('matmul', {
        p: [C, Float64Array.of(x), Float64Array.of(3), null, null],
        i: [1, 1, 1, 1, 0, 0, 0, 0, 0, 1],
        f: [1],
      });
      return C[0];
    };
    assert.equal(run(), 3);
    refOptions.roundCompute = false;
    assert.equal(run(), 3 * x);
    refOptions.roundCompute = true;
  });
});

describe('attention', () => {
  for (const [Tq, Tk, causal, window] of [
    [6, 6, 0, 0],
    [6, 6, 1, 0],
    [3, 7, 1, 0],
    [7, 3, 1, 0],
    [6, 6, 1, 3],
    [5, 8, 0, 2],
  ]) {
    test(`equals softmax of a masked score matrix: Tq ${Tq} Tk ${Tk} causal ${causal} window ${window}`, () => {
      const [H, D, scale] = [2, 4, 0.5];
      const [q, k, v, bias] = [normals(Tq * H * D), normals(Tk * H * D), normals(Tk * H * D), normals(H * Tq * Tk)];
      const [out, lse] = [zeros(Tq * H * D), zeros(H * Tq)];
      const i = [1, Tq, Tk, H, H, D, H * D, H * D, H * D, H * D, causal, window, 2];
      callRef('attention', { p: [out, lse, q, k, v, bias, null, null], i, f: [scale] });
      for (let h = 0; h < H; h++) {
        const head = (x: Float64Array, T: number) =>
          floats(T * D, (n) => x[Math.floor(n / D) * H * D + h * D + (n % D)]);
        const [scores, P, O] = [zeros(Tq * Tk), zeros(Tq * Tk), zeros(Tq * D)];
        const addend = floats(Tq * Tk, (n) => {
          const distance = Math.floor(n / Tk) + Tk - Tq - (n % Tk);
          const seen = (!causal || distance >= 0) && (!window || Math.abs(distance) < window);
          return seen ? bias[h * Tq * Tk + n] : MINUS_INF;
        });
        callRef('matmul', {
          p: [scores, head(q, Tq), head(k, Tk), null, addend],
          i: [1, Tq, Tk, D, 0, 1, 0, 0, 0, 0],
          f: [scale],
        });
        callRef('softmax', { p: [P, scores], i: [Tq, Tk] });
        callRef('matmul', { p: [O, P, head(v, Tk), null, null], i: [1, Tq, D, Tk, 0, 0, 0, 0, 0, 0], f: [1] });
        assert.ok(distance(head(out, Tq), O) < 1e-12);
        const rows = zeros(Tq);
        callRef('logsumexp', { p: [rows, scores], i: [Tq, Tk] });
        const same = (x: number, y: number) => x === y || Math.abs(x - y) < 1e-12; // -inf too
        assert.ok(rows.every((x, n) => same(x, lse[h * Tq + n])));
      }
    });
  }

  test('heads share keys in groups, segments hide, a relative bias counts distances', () => {
    const run = (
      H: number,
      Hkv: number,
      k: Float64Array,
      v: Float64Array,
      rest: (Float64Array | Int32Array | null)[],
      mode: number,
    ) => {
      const out = zeros(3 * H * 2);
      const i = [1, 3, 3, H, Hkv, 2, H * 2, Hkv * 2, Hkv * 2, H * 2, 0, 0, mode];
      callRef('attention', { p: [out, zeros(3 * H), q, k, v, ...rest], i, f: [1] });
      return out;
    };
    const [q, k, v] = [normals(3 * 4 * 2), normals(3 * 2), normals(3 * 2)];
    const repeated = (x: Float64Array) => floats(3 * 4 * 2, (n) => x[Math.floor(n / 8) * 2 + (n % 2)]);
    const shared = run(4, 1, k, v, [null, null, null], 0);
    assert.ok(distance(shared, run(4, 4, repeated(k), repeated(v), [null, null, null], 0)) < 1e-14);

    const alone = run(4, 1, k, v, [null, Int32Array.of(0, 1, 2), Int32Array.of(0, 1, 2)], 0);
    assert.ok(distance(alone, repeated(v)) < 1e-14);

    const relative = normals(4 * 5);
    const full = floats(4 * 9, (n) => relative[Math.floor(n / 9) * 5 + (n % 3) - (Math.floor(n / 3) % 3) + 2]);
    const [a, b] = [run(4, 1, k, v, [relative, null, null], 1), run(4, 1, k, v, [full, null, null], 2)];
    assert.ok(distance(a, b) < 1e-14);
  });
});

describe('gather and sort', () => {
  test('sort is stable with NaN last both ways; topk breaks ties by index', () => {
    const x = Float64Array.of(2, NAN, 1, 2, -1, 2);
    const run = (descending: number) => {
      const [values, idx] = [zeros(6), new Int32Array(6)];
      callRef('sort', { p: [values, idx, x], i: [1, 6, descending] });
      assert.deepEqual(
        [...values],
        [...idx].map((k) => x[k]),
      );
      return [...idx];
    };
    assert.deepEqual(
      [run(0), run(1)],
      [
        [4, 2, 0, 3, 5, 1],
        [0, 3, 5, 2, 4, 1],
      ],
    );
    const [values, idx] = [zeros(2), new Int32Array(2)];
    callRef('topk', { p: [values, idx, x], i: [1, 6, 2] });
    assert.deepEqual(
      [[...values], [...idx]],
      [
        [2, 2],
        [0, 3],
      ],
    );
  });

  test('indices out of range are errors that name the value and the limit', () => {
    const calls: [string, (Float64Array | Int32Array)[], number[]][] = [
      ['embedding', [zeros(1), zeros(5), Int32Array.of(7)], [1, 1, 5]],
      ['embedding_bwd', [zeros(5), Int32Array.of(7), zeros(1)], [1, 1, 5]],
      ['gather', [zeros(1), zeros(5), Int32Array.of(7)], [1, 5, 1, 1]],
      ['scatter_add', [zeros(5), Int32Array.of(7), zeros(1)], [1, 5, 1, 1]],
      ['one_hot', [zeros(5), Int32Array.of(7)], [1, 5]],
      ['cross_entropy', [zeros(1), zeros(1), zeros(5), Int32Array.of(7)], [1, 5, -1]],
    ];
    for (const [kernel, p, i] of calls) {
      assert.throws(
        () => callRef(kernel, { p, i, f: [0, 0] }),
        new AnsatzError('index 7 out of range: limit 5'),
        kernel,
      );
    }
  });
});
