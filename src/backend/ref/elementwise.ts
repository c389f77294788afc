// Elementwise, strided and gated kernels.
import { gateActivations, slope, unary } from './activations.ts';
import { forEachIndex } from './common.ts';
import type { RefKernel } from './types.ts';

const binary: Record<string, (a: number, b: number) => number> = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  div: (a, b) => a / b,
  maximum: Math.max,
  minimum: Math.min,
  pow: (a, b) => a ** b,
  eq: (a, b) => Number(a === b),
  ne: (a, b) => Number(a !== b),
  lt: (a, b) => Number(a < b),
  le: (a, b) => Number(a <= b),
  gt: (a, b) => Number(a > b),
  ge: (a, b) => Number(a >= b),
};

function unaryKernel(f: (x: number) => number): RefKernel {
  return ({ p, i: [n] }) => {
    const [out, x] = [p[0]!, p[1]!];
    for (let k = 0; k < n; k++) out[k] = f(x[k]);
  };
}

function slopeKernel(df: (x: number) => number): RefKernel {
  return ({ p, i: [n] }) => {
    const [dx, x, dy] = [p[0]!, p[1]!, p[2]!];
    for (let k = 0; k < n; k++) dx[k] = dy[k] * df(x[k]);
  };
}

function binaryKernel(f: (a: number, b: number) => number): RefKernel {
  return ({ p, i: [nd, ...rest] }) => {
    const [out, a, b] = [p[0]!, p[1]!, p[2]!];
    const [dims, strideA, strideB] = [rest.slice(0, nd), rest.slice(nd, 2 * nd), rest.slice(2 * nd, 3 * nd)];
    forEachIndex(dims, [strideA, strideB], (k, [oa, ob]) => {
      out[k] = f(a[oa], b[ob]);
    });
  };
}

const kernels: Record<string, RefKernel> = {
  fill({ p, i: [n], f: [value] }) {
    const out = p[0]!;
    for (let k = 0; k < n; k++) out[k] = value;
  },

  iota({ p, i: [n], f: [start, step] }) {
    const out = p[0]!;
    for (let k = 0; k < n; k++) out[k] = start + step * k;
  },

  // Storing into an integer array truncates toward zero and wraps, which is what the contract asks of the cast.
  cast({ p, i: [n] }) {
    const [out, x] = [p[0]!, p[1]!];
    for (let k = 0; k < n; k++) out[k] = x[k];
  },

  affine({ p, i: [n], f: [a, b] }) {
    const [out, x] = [p[0]!, p[1]!];
    for (let k = 0; k < n; k++) out[k] = a * x[k] + b;
  },

  clamp({ p, i: [n], f: [lo, hi] }) {
    const [out, x] = [p[0]!, p[1]!];
    for (let k = 0; k < n; k++) out[k] = Math.min(Math.max(x[k], lo), hi);
  },

  powc({ p, i: [n], f: [e] }) {
    const [out, x] = [p[0]!, p[1]!];
    for (let k = 0; k < n; k++) out[k] = x[k] ** e;
  },

  tanh_bwd({ p, i: [n] }) {
    const [dx, y, dy] = [p[0]!, p[1]!, p[2]!];
    for (let k = 0; k < n; k++) dx[k] = dy[k] * (1 - y[k] * y[k]);
  },

  sigmoid_bwd({ p, i: [n] }) {
    const [dx, y, dy] = [p[0]!, p[1]!, p[2]!];
    for (let k = 0; k < n; k++) dx[k] = dy[k] * y[k] * (1 - y[k]);
  },

  mul({ p, i: [nd, ...rest] }) {
    // Products of two 32-bit integers need 64 bits before they wrap; float64 has 53.
    const [out, a, b] = [p[0]!, p[1]!, p[2]!];
    const multiply = out instanceof Int32Array ? Math.imul : binary.mul;
    const [dims, strideA, strideB] = [rest.slice(0, nd), rest.slice(nd, 2 * nd), rest.slice(2 * nd, 3 * nd)];
    forEachIndex(dims, [strideA, strideB], (k, [oa, ob]) => {
      out[k] = multiply(a[oa], b[ob]);
    });
  },

  where({ p, i: [nd, ...rest] }) {
    const [out, cond, a, b] = [p[0]!, p[1]!, p[2]!, p[3]!];
    const [dims, strideC, strideA, strideB] = [0, 1, 2, 3].map((s) => rest.slice(s * nd, (s + 1) * nd));
    forEachIndex(dims, [strideC, strideA, strideB], (k, [oc, oa, ob]) => {
      out[k] = cond[oc] !== 0 ? a[oa] : b[ob];
    });
  },

  scale_by({ p, i: [n], f: [c] }) {
    const [out, x, s] = [p[0]!, p[1]!, p[2]!];
    for (let k = 0; k < n; k++) out[k] = x[k] * s[0] * c;
  },

  add_scaled({ p, i: [n], f: [ca, cb] }) {
    const [out, a, b] = [p[0]!, p[1]!, p[2]!];
    for (let k = 0; k < n; k++) out[k] = ca * a[k] + cb * b[k];
  },

  strided_read({ p, m, o, i: [nd, ...rest] }) {
    const [out, x] = [p[0]!, m[1]!];
    forEachIndex(rest.slice(0, nd), [rest.slice(nd, 2 * nd)], (k, [ox]) => {
      out[k] = x[o[1] + ox];
    });
  },

  strided_write({ p, m, o, i: [nd, ...rest] }) {
    const [out, x] = [m[0]!, p[1]!];
    forEachIndex(rest.slice(0, nd), [rest.slice(nd, 2 * nd)], (k, [oo]) => {
      out[o[0] + oo] = x[k];
    });
  },

  strided_add({ p, m, o, i: [nd, ...rest] }) {
    const [out, x] = [m[0]!, p[1]!];
    forEachIndex(rest.slice(0, nd), [rest.slice(nd, 2 * nd)], (k, [oo]) => {
      out[o[0] + oo] += x[k];
    });
  },

  glu({ p, i: [rows, h, act] }) {
    const [out, x] = [p[0]!, p[1]!];
    const { value } = gateActivations[act];
    for (let r = 0; r < rows; r++) {
      for (let k = 0; k < h; k++) out[r * h + k] = value(x[r * 2 * h + k]) * x[r * 2 * h + h + k];
    }
  },

  glu_bwd({ p, i: [rows, h, act] }) {
    const [dx, x, dy] = [p[0]!, p[1]!, p[2]!];
    const { value, slope: df } = gateActivations[act];
    for (let r = 0; r < rows; r++) {
      for (let k = 0; k < h; k++) {
        const gate = x[r * 2 * h + k];
        const up = x[r * 2 * h + h + k];
        const d = dy[r * h + k];
        dx[r * 2 * h + k] = d * up * df(gate);
        dx[r * 2 * h + h + k] = d * value(gate);
      }
    }
  },
};

export const elementwise: Record<string, RefKernel> = {
  ...Object.fromEntries(Object.entries(unary).map(([name, f]) => [name, unaryKernel(f)])),
  ...Object.fromEntries(Object.entries(slope).map(([name, df]) => [`${name}_bwd`, slopeKernel(df)])),
  ...Object.fromEntries(Object.entries(binary).map(([name, f]) => [name, binaryKernel(f)])),
  ...kernels,
};
