// Cases of the flat elementwise kernels and the gated ones.
import type { ElementType } from '../../../src/backend/dtype.ts';
import {
  EXACT,
  FLOATS,
  floatDtype,
  gaussian,
  input,
  LENGTHS,
  makeCase,
  output,
  outputIn,
  type Rng,
  tolerance,
} from './build.ts';
import type { CaseGenerator, KernelCase, TensorSpec, Tolerance } from './types.ts';

interface Domain {
  /** Inputs are drawn from here. */
  readonly draw: (rng: Rng) => number;
  readonly tolerance: Tolerance;
  /** Values at the edge of what the function must handle. */
  readonly edges: readonly number[];
}

const { POSITIVE_INFINITY: INF, NEGATIVE_INFINITY, NaN: NAN } = Number;
const anySign = (rng: Rng) => 3 * rng.normal();
const positive = (rng: Rng) => Math.exp(2 * rng.normal());
const finiteEdges = [0, -0, 1, -1, 1e-6, -1e-6, 5, -5, 9, -9, 20, -20, 80, -80];
const allEdges = [...finiteEdges, 1e-30, -1e-30, 1e30, -1e30, INF, NEGATIVE_INFINITY, NAN];
const roots = [0, 1, 4, 1e-30, 1e30, INF, NAN, -1];

const domains: Record<string, Domain> = {
  neg: { draw: anySign, tolerance: EXACT, edges: allEdges },
  abs: { draw: anySign, tolerance: EXACT, edges: allEdges },
  sign: { draw: anySign, tolerance: EXACT, edges: allEdges.slice(0, -1) },
  square: { draw: anySign, tolerance: tolerance(1e-6, 0), edges: allEdges },
  sqrt: { draw: positive, tolerance: tolerance(1e-6, 0), edges: roots },
  rsqrt: { draw: positive, tolerance: tolerance(1e-6, 0), edges: roots },
  recip: { draw: anySign, tolerance: tolerance(1e-6, 0), edges: allEdges.filter((x) => x !== 0) },
  exp: { draw: (rng) => rng.uniform(-20, 20), tolerance: tolerance(1e-6, 0), edges: [...allEdges, 88, 89, -86, -104] },
  log: { draw: positive, tolerance: tolerance(1e-6, 1e-7), edges: [...roots, 1.0001, 0.9999] },
  sin: { draw: (rng) => rng.uniform(-40, 40), tolerance: tolerance(1e-6, 1e-6), edges: finiteEdges },
  cos: { draw: (rng) => rng.uniform(-40, 40), tolerance: tolerance(1e-6, 1e-6), edges: finiteEdges },
  tanh: { draw: anySign, tolerance: tolerance(1e-6, 1e-7), edges: allEdges },
  sigmoid: { draw: anySign, tolerance: tolerance(1e-6, 1e-30), edges: allEdges },
  relu: { draw: anySign, tolerance: EXACT, edges: allEdges.slice(0, -1) },
  gelu: { draw: anySign, tolerance: tolerance(2e-6, 1e-6), edges: finiteEdges },
  gelu_erf: { draw: anySign, tolerance: tolerance(2e-6, 1e-6), edges: finiteEdges },
  silu: { draw: anySign, tolerance: tolerance(2e-6, 1e-30), edges: finiteEdges },
  softplus: { draw: anySign, tolerance: tolerance(2e-6, 1e-7), edges: finiteEdges },
  relu2: { draw: anySign, tolerance: tolerance(1e-6, 0), edges: allEdges.slice(0, -1) },
  step: { draw: anySign, tolerance: EXACT, edges: allEdges },
};

/** A call over every length: out first, the inputs in the dtypes drawn, now and then in place of one of them. */
function overLengths(
  kernel: string,
  rng: Rng,
  build: (n: number, dtype: () => ElementType) => { inputs: TensorSpec[]; f?: number[]; tolerance: Tolerance },
): KernelCase[] {
  return LENGTHS.map((n) => {
    const { inputs, f, tolerance: tol } = build(n, () => floatDtype(rng));
    const dtype = floatDtype(rng);
    const hosts = inputs.map((_, k) => k).filter((k) => inputs[k].dtype === dtype && inputs[k].length === n && n > 0);
    const out = rng.chance(0.3) && hosts.length > 0 ? outputIn(1 + rng.pick(hosts), dtype, n) : output(dtype, n);
    return makeCase(kernel, { p: [out, ...inputs], i: [n], f, tolerance: tol });
  });
}

const unary: CaseGenerator = (kernel, rng) => {
  const domain = domains[kernel];
  const random = overLengths(kernel, rng, (n, dtype) => ({
    inputs: [input(dtype(), n, () => domain.draw(rng))],
    tolerance: domain.tolerance,
  }));
  // Every dtype pair at a length that has whole vectors and a tail.
  for (const from of FLOATS) {
    for (const to of FLOATS) {
      const x = input(from, 777, () => domain.draw(rng));
      random.push(makeCase(kernel, { p: [output(to, 777), x], i: [777], tolerance: domain.tolerance }));
    }
  }
  for (const shift of [0, 1, 7]) {
    // Repeated and shifted, so that each value meets vector bodies and tails.
    const n = 3 * domain.edges.length + shift;
    const x = input('f32', n, (k) => domain.edges[(k + shift) % domain.edges.length]);
    random.push(makeCase(kernel, { p: [output('f32', n), x], i: [n], tolerance: domain.tolerance, note: 'edges' }));
  }
  return random;
};

const slopeKernel: CaseGenerator = (kernel, rng) =>
  overLengths(kernel, rng, (n, dtype) => ({
    inputs: [input(dtype(), n, () => anySign(rng)), gaussian(rng, dtype(), n)],
    tolerance: tolerance(3e-6, 2e-6),
  }));

const fromOutput: CaseGenerator = (kernel, rng) =>
  overLengths(kernel, rng, (n, dtype) => ({
    inputs: [
      input(dtype(), n, () => (kernel === 'tanh_bwd' ? rng.uniform(-1, 1) : rng.next())),
      gaussian(rng, dtype(), n),
    ],
    tolerance: tolerance(2e-6, 1e-6),
  }));

const ALL: readonly ElementType[] = ['f32', 'bf16', 'i32', 'u8'];

const fill: CaseGenerator = (kernel, rng) =>
  ALL.flatMap((dtype) =>
    LENGTHS.map((n) => {
      const value =
        dtype === 'i32'
          ? rng.int(-1e9, 1e9)
          : dtype === 'u8'
            ? rng.int(0, 255)
            : rng.pick([0, 1, -2.5, rng.normal(), INF]);
      return makeCase(kernel, { p: [output(dtype, n)], i: [n], f: [value] });
    }),
  );

const iota: CaseGenerator = (kernel, rng) =>
  LENGTHS.flatMap((n) => [
    makeCase(kernel, { p: [output('i32', n)], i: [n], f: [rng.int(-50, 50), rng.int(-3, 3)] }),
    makeCase(kernel, {
      p: [output('f32', n)],
      i: [n],
      f: [rng.int(-9, 9), rng.pick([1, -1, 0.5, 0.1])],
      tolerance: tolerance(3e-7, 1e-5),
    }),
  ]);

const cast: CaseGenerator = (kernel, rng) =>
  ALL.flatMap((from) =>
    ALL.flatMap((to) =>
      [0, 1, 5, 16, 31, 33, 64, 5001, ...(from === to || to === 'bf16' ? [100_003] : [])].map((n) => {
        // Integers from floats stay well inside int32: outside it the contract says nothing.
        const draw = () =>
          from === 'i32'
            ? rng.int(-(2 ** 31), 2 ** 31 - 1)
            : from === 'u8'
              ? rng.int(0, 255)
              : rng.pick([2, 300, 1e6]) * rng.normal();
        return makeCase(kernel, { p: [output(to, n), input(from, n, draw)], i: [n] });
      }),
    ),
  );

const affine: CaseGenerator = (kernel, rng) =>
  overLengths(kernel, rng, (n, dtype) => ({
    inputs: [gaussian(rng, dtype(), n)],
    f: [rng.pick([1, -1, 0, 0.37, 1e-3]), rng.pick([0, 1, -2.7])],
    tolerance: tolerance(1e-6, 1e-6),
  }));

const clamp: CaseGenerator = (kernel, rng) =>
  overLengths(kernel, rng, (n, dtype) => ({
    inputs: [gaussian(rng, dtype(), n)],
    f: rng.pick([
      [-0.5, 0.5],
      [0, INF],
      [NEGATIVE_INFINITY, 0.25],
      [0.125, 0.125],
    ]),
    tolerance: EXACT,
  }));

const powc: CaseGenerator = (kernel, rng) =>
  [2, 3, -1, 0.5, -0.5, 1.5, 0, 1, 0.3, -2.25].flatMap((e) =>
    [1, 7, 16, 33, 500].map((n) => {
      const dtype = floatDtype(rng);
      const x = input(floatDtype(rng), n, () =>
        Number.isInteger(e) && rng.chance(0.3) ? -positive(rng) : positive(rng),
      );
      return makeCase(kernel, { p: [output(dtype, n), x], i: [n], f: [e], tolerance: tolerance(1e-5, 0) });
    }),
  );

const scaleBy: CaseGenerator = (kernel, rng) =>
  overLengths(kernel, rng, (n, dtype) => ({
    inputs: [gaussian(rng, dtype(), n), input('f32', 1, () => rng.pick([0, -1.5, 3.25e-3]))],
    f: [rng.pick([1, 0.1, -2])],
    tolerance: tolerance(1e-6, 0),
  }));

const addScaled: CaseGenerator = (kernel, rng) =>
  overLengths(kernel, rng, (n, dtype) => ({
    inputs: [gaussian(rng, dtype(), n), gaussian(rng, dtype(), n)],
    f: [rng.pick([1, 0.9, 0]), rng.pick([1, -1, 0.1])],
    tolerance: tolerance(1e-6, 1e-6),
  }));

const GLU_SHAPES = [
  [0, 4],
  [1, 1],
  [1, 40],
  [3, 5],
  [2, 17],
  [7, 16],
  [5, 33],
  [13, 64],
  [61, 100],
  [3, 1367],
  [200, 300],
];

const glu: CaseGenerator = (kernel, rng) =>
  GLU_SHAPES.flatMap(([rows, h]) =>
    [0, 1, 2, 3, 4, 5].map((act) => {
      const x = input(floatDtype(rng), rows * 2 * h, () => anySign(rng));
      const backward = kernel === 'glu_bwd';
      const out = output(floatDtype(rng), rows * h * (backward ? 2 : 1));
      const p = backward ? [out, x, gaussian(rng, floatDtype(rng), rows * h)] : [out, x];
      return makeCase(kernel, { p, i: [rows, h, act], tolerance: tolerance(3e-6, 2e-5, 3e-6) });
    }),
  );

export const elementwiseCases: Record<string, CaseGenerator> = {
  ...Object.fromEntries(Object.keys(domains).map((name) => [name, unary])),
  ...Object.fromEntries(
    ['gelu', 'gelu_erf', 'silu', 'relu', 'relu2', 'softplus'].map((name) => [`${name}_bwd`, slopeKernel]),
  ),
  tanh_bwd: fromOutput,
  sigmoid_bwd: fromOutput,
  fill,
  iota,
  cast,
  affine,
  clamp,
  powc,
  scale_by: scaleBy,
  add_scaled: addScaled,
  glu,
  glu_bwd: glu,
};
