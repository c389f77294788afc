// The reference's backward kernels against central differences of its forward kernels.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { type RefArray, refOptions } from '../../src/backend/ref/index.ts';
import { Rng } from '../support/kernel-cases/index.ts';
import { callRef, distance, floats, numericalGradient } from '../support/ref-call.ts';

const rng = new Rng('gradients');
const normals = (n: number) => floats(n, () => rng.normal());
const zeros = (n: number) => new Float64Array(n);

/** Asserts that `gradient` is that of sum(weight * forward()) with respect to x. */
function check(what: string, gradient: RefArray, x: RefArray, forward: () => RefArray, weight: RefArray): void {
  const worst = distance(gradient, numericalGradient(x, forward, weight));
  assert.ok(worst < 1e-8, `${what}: off by ${worst}`);
}

function forwardOf(kernel: string, out: RefArray, rest: readonly (RefArray | null)[], i: number[], f: number[] = []) {
  return () => {
    callRef(kernel, { p: [out, ...rest], i, f });
    return out;
  };
}

describe('reference gradients', () => {
  for (const name of ['gelu', 'gelu_erf', 'silu', 'relu', 'relu2', 'softplus', 'tanh', 'sigmoid']) {
    test(name, () => {
      const n = 40;
      const x = floats(n, (k) => (k - 19.5) / 5); // no kink within the differences' reach
      const [y, dx, dy] = [zeros(n), zeros(n), normals(n)];
      const forward = forwardOf(name, y, [x], [n]);
      forward();
      const fromOutput = name === 'tanh' || name === 'sigmoid';
      callRef(`${name}_bwd`, { p: [dx, fromOutput ? y.slice() : x, dy], i: [n] });
      check(name, dx, x, forward, dy);
    });
  }

  for (const act of [0, 1, 2, 3, 4, 5]) {
    test(`glu ${act}`, () => {
      const [rows, h] = [3, 5];
      const x = floats(rows * 2 * h, () => rng.pick([-1, 1]) * rng.uniform(0.1, 2));
      const [y, dx, dy] = [zeros(rows * h), zeros(rows * 2 * h), normals(rows * h)];
      callRef('glu_bwd', { p: [dx, x, dy], i: [rows, h, act] });
      check('dx', dx, x, forwardOf('glu', y, [x], [rows, h, act]), dy);
    });
  }

  for (const name of ['softmax', 'log_softmax']) {
    test(name, () => {
      const [rows, cols] = [3, 7];
      const n = rows * cols;
      const [x, y, dx, dy] = [normals(n), zeros(n), zeros(n), normals(n)];
      const forward = forwardOf(name, y, [x], [rows, cols]);
      callRef(`${name}_bwd`, { p: [dx, forward().slice(), dy], i: [rows, cols] });
      check('dx', dx, x, forward, dy);
    });
  }

  test('rms_norm', () => {
    const [rows, d] = [3, 6];
    const [x, w, y, rstd, dy] = [normals(rows * d), normals(d), zeros(rows * d), zeros(rows), normals(rows * d)];
    const forward = forwardOf('rms_norm', y, [rstd, x, w], [rows, d], [1e-5]);
    forward();
    const [dx, dw] = [zeros(rows * d), zeros(d)];
    callRef('rms_norm_bwd', { p: [dx, dw, x, w, rstd.slice(), dy], i: [rows, d] });
    check('dx', dx, x, forward, dy);
    check('dw', dw, w, forward, dy);
  });

  test('layer_norm', () => {
    const [rows, d] = [3, 6];
    const [x, w, b, y, dy] = [normals(rows * d), normals(d), normals(d), zeros(rows * d), normals(rows * d)];
    const [mean, rstd] = [zeros(rows), zeros(rows)];
    const forward = forwardOf('layer_norm', y, [mean, rstd, x, w, b], [rows, d], [1e-5]);
    forward();
    const [dx, dw, db] = [zeros(rows * d), zeros(d), zeros(d)];
    callRef('layer_norm_bwd', { p: [dx, dw, db, x, w, mean.slice(), rstd.slice(), dy], i: [rows, d] });
    check('dx', dx, x, forward, dy);
    check('dw', dw, w, forward, dy);
    check('db', db, b, forward, dy);
  });

  for (const [causal, window, biasMode, segmented] of [
    [0, 0, 0, 0],
    [1, 0, 1, 0],
    [1, 2, 2, 0],
    [0, 3, 1, 1],
    [1, 0, 2, 1],
  ]) {
    test(`attention, causal ${causal} window ${window} bias ${biasMode} segments ${segmented}`, () => {
      const [B, Tq, Tk, H, Hkv, D] = [2, 4, 5, 4, 2, 3];
      const [q, k, v] = [normals(B * Tq * H * D), normals(B * Tk * Hkv * D), normals(B * Tk * Hkv * D)];
      const bias = biasMode === 0 ? null : normals(H * (biasMode === 1 ? Tq + Tk - 1 : Tq * Tk));
      const segQ = segmented ? Int32Array.from({ length: B * Tq }, (_, n) => Number(n % Tq > 1)) : null;
      const segK = segmented ? Int32Array.from({ length: B * Tk }, (_, n) => Number(n % Tk > 2)) : null;
      const [out, lse, dout] = [zeros(q.length), zeros(B * H * Tq), normals(q.length)];
      const i = [B, Tq, Tk, H, Hkv, D, H * D, Hkv * D, Hkv * D, H * D, causal, window, biasMode];
      const forward = forwardOf('attention', out, [lse, q, k, v, bias, segQ, segK], i, [0.6]);
      forward();
      const [dq, dk, dv, dbias] = [zeros(q.length), zeros(k.length), zeros(v.length), bias && zeros(bias.length)];
      callRef('attention_bwd', {
        p: [dq, dk, dv, dbias, dout, q, k, v, out.slice(), lse.slice(), bias, segQ, segK],
        i: [...i, H * D, Hkv * D, Hkv * D, H * D],
        f: [0.6],
      });
      check('dq', dq, q, forward, dout);
      check('dk', dk, k, forward, dout);
      check('dv', dv, v, forward, dout);
      if (bias && dbias) check('dbias', dbias, bias, forward, dout);
    });
  }

  test('cross_entropy', () => {
    const [rows, V] = [4, 6];
    const [x, loss, lse, dloss] = [normals(rows * V), zeros(rows), zeros(rows), normals(rows)];
    const target = Int32Array.of(2, -1, 0, 5);
    const forward = forwardOf('cross_entropy', loss, [lse, x, target], [rows, V, -1], [0.1, 1e-2]);
    forward();
    const dx = zeros(rows * V);
    callRef('cross_entropy_bwd', { p: [dx, x, lse.slice(), target, dloss], i: [rows, V, -1], f: [0.1, 1e-2] });
    check('dlogits', dx, x, forward, dloss);
  });

  test('linear_cross_entropy', () => {
    const [rows, d, V] = [4, 3, 6];
    const [h, w, loss, rowscale] = [normals(rows * d), normals(V * d), zeros(rows), normals(rows)];
    const target = Int32Array.of(2, -1, 0, 5);
    refOptions.roundCompute = false;
    const i = [rows, d, V, -1, 1];
    const [dh, dw] = [zeros(rows * d), zeros(V * d)];
    callRef('linear_cross_entropy', { p: [loss, dh, dw, h, w, target, rowscale], i, f: [1e-2, 0.7] });
    const forward = forwardOf('linear_cross_entropy', loss, [null, null, h, w, target, null], i, [1e-2, 0.7]);
    check('dh', dh, h, forward, rowscale);
    check('dw', dw, w, forward, rowscale);
    refOptions.roundCompute = true;
  });

  test('conv1d', () => {
    const [B, T, Cin, Cout, K, groups, stride, padL, dilation, Tout] = [2, 7, 4, 6, 3, 2, 2, 2, 2, 3];
    const i = [B, T, Cin, Cout, K, groups, stride, padL, dilation, Tout];
    const [x, w, bias] = [normals(B * T * Cin), normals((Cout * Cin * K) / groups), normals(Cout)];
    const [y, dy] = [zeros(B * Tout * Cout), normals(B * Tout * Cout)];
    const forward = forwardOf('conv1d', y, [x, w, bias], i);
    const [dx, dw, dbias] = [zeros(x.length), zeros(w.length), zeros(Cout)];
    callRef('conv1d_bwd_x', { p: [dx, w, dy], i });
    callRef('conv1d_bwd_w', { p: [dw, dbias, x, dy], i });
    check('dx', dx, x, forward, dy);
    check('dw', dw, w, forward, dy);
    check('dbias', dbias, bias, forward, dy);
  });

  test('embedding and gather', () => {
    const [n, d, rows] = [6, 3, 4];
    const ids = Int32Array.of(3, 0, 3, 1, 3, 0);
    const [table, out, dout, dtable] = [normals(rows * d), zeros(n * d), normals(n * d), zeros(rows * d)];
    callRef('embedding_bwd', { p: [dtable, ids, dout], i: [n, d, rows] });
    check('dtable', dtable, table, forwardOf('embedding', out, [table, ids], [n, d, rows]), dout);

    const [outer, from, m, inner] = [2, 4, 3, 2];
    const idx = Int32Array.from({ length: outer * m * inner }, () => rng.int(0, from - 1));
    const [x, y] = [normals(outer * from * inner), zeros(outer * m * inner)];
    const [dx, dy] = [zeros(x.length), normals(y.length)];
    callRef('scatter_add', { p: [dx, idx, dy], i: [outer, from, m, inner] });
    check('dx', dx, x, forwardOf('gather', y, [x, idx], [outer, from, m, inner]), dy);
  });

  test('rope: the inverse rotation is the gradient', () => {
    const [B, T, H, D, R] = [1, 5, 3, 6, 4];
    const angles = floats((T * R) / 2, (k) => k / 3);
    const [cos, sin] = [angles.map(Math.cos), angles.map(Math.sin)];
    const n = B * T * H * D;
    for (const interleaved of [0, 1]) {
      const [x, y, dx, dy] = [normals(n), zeros(n), zeros(n), normals(n)];
      const i = (inverse: number) => [B, T, H, 2, D, R, T, interleaved, inverse, H * D, H * D];
      callRef('rope', { p: [dx, dy, cos, sin, null], i: i(1) });
      check('dx', dx, x, forwardOf('rope', y, [x, cos, sin, null], i(0)), dy);
    }
  });
});
