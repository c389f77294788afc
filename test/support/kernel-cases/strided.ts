// Cases of the kernels that take dims and strides: broadcasting arithmetic and strided copies.
import type { ElementType } from '../../../src/backend/dtype.ts';
import {
  contiguous,
  EXACT,
  floatDtype,
  input,
  makeCase,
  output,
  outputIn,
  type Rng,
  sizeOf,
  tolerance,
  updated,
} from './build.ts';
import type { CaseGenerator, TensorSpec, Tolerance } from './types.ts';

interface Layout {
  readonly strides: number[];
  readonly length: number;
}

/** Elements that strides of either sign reach, and where index 0 lies among them. */
function extent(dims: readonly number[], strides: readonly number[]): { length: number; origin: number } {
  if (sizeOf(dims) === 0) return { length: 1, origin: 0 };
  const reach = dims.map((size, axis) => (size - 1) * strides[axis]);
  const back = reach.filter((r) => r < 0).reduce((a, b) => a - b, 0);
  const forth = reach.filter((r) => r > 0).reduce((a, b) => a + b, 0);
  return { length: back + forth + 1, origin: back };
}

/** A layout in which the axes lie in the given order (last = densest), with gaps of `padding` elements. */
function packed(dims: readonly number[], order: readonly number[], padding: number): number[] {
  const strides = new Array<number>(dims.length);
  let step = 1;
  for (const axis of [...order].reverse()) {
    strides[axis] = step;
    step = step * Math.max(dims[axis], 1) + padding;
  }
  return strides;
}

/** How an operand may be laid out: as the output, broadcast over some axes, transposed, with gaps, or one element. */
function randomLayout(rng: Rng, dims: readonly number[]): Layout {
  const axes = dims.map((_, axis) => axis);
  const kind = rng.pick(['contiguous', 'contiguous', 'broadcast', 'broadcast', 'transposed', 'padded', 'scalar']);
  let strides = contiguous(dims);
  if (kind === 'scalar') strides = dims.map(() => 0);
  if (kind === 'transposed') strides = packed(dims, rng.shuffled(axes), 0);
  if (kind === 'padded') strides = packed(dims, axes, rng.int(1, 3));
  if (kind === 'broadcast') {
    const dropped = axes.map(() => rng.chance(0.5));
    const kept = dims.map((size, axis) => (dropped[axis] ? 1 : size));
    strides = contiguous(kept).map((stride, axis) => (dropped[axis] ? 0 : stride));
  }
  return { strides, length: extent(dims, strides).length };
}

/** Dims with vector-width edges in the last axis, empty ones, scalars, and (a few) large ones. */
function dimsToTest(rng: Rng): number[][] {
  const random = Array.from({ length: 80 }, () => {
    const dims = Array.from({ length: rng.int(1, 5) }, () => rng.pick([1, 2, 3, 4, 5, 7]));
    dims[dims.length - 1] = rng.pick([1, 2, 3, 8, 15, 16, 17, 31, 33, 40]);
    return dims;
  });
  const edges = [
    [],
    [0],
    [3, 0],
    [0, 5],
    [1],
    [1, 1, 1],
    [2, 1, 3, 1, 2, 5],
    [5000],
    [71, 71],
    [317, 317],
    [2, 50, 1009],
    [100_003],
  ];
  // The large ones come several times, so that each meets several operand layouts.
  return [...random, ...edges, ...edges.slice(-5), ...edges.slice(-5)];
}

interface Operation {
  readonly draw: (rng: Rng, side: 0 | 1) => number;
  readonly drawInt: (rng: Rng, side: 0 | 1) => number;
  readonly tolerance: Tolerance;
}

const normals = (rng: Rng) => 2 * rng.normal();
const wide = (rng: Rng) => rng.int(-1e9, 1e9);
const few = (rng: Rng) => rng.int(-2, 2); // comparisons need equal values to be worth running
const rounded = tolerance(1e-6, 0);
const operations: Record<string, Operation> = {
  add: { draw: normals, drawInt: wide, tolerance: rounded },
  sub: { draw: normals, drawInt: wide, tolerance: rounded },
  mul: { draw: normals, drawInt: (rng) => rng.int(-40_000, 40_000), tolerance: rounded },
  div: {
    draw: (rng) => rng.pick([-1, 1]) * Math.exp(rng.normal()),
    drawInt: (rng, side) => (side === 0 ? wide(rng) : rng.pick([-1, 1]) * rng.int(1, 9)),
    tolerance: rounded,
  },
  maximum: { draw: normals, drawInt: wide, tolerance: EXACT },
  minimum: { draw: normals, drawInt: wide, tolerance: EXACT },
  pow: {
    draw: (rng, side) => (side === 0 ? Math.exp(rng.normal()) : 2 * rng.normal()),
    drawInt: (rng, side) => (side === 0 ? rng.int(-5, 5) : rng.int(0, 6)),
    tolerance: tolerance(1e-5, 0),
  },
};
for (const name of ['eq', 'ne', 'lt', 'le', 'gt', 'ge'])
  operations[name] = { draw: few, drawInt: few, tolerance: EXACT };

const binary: CaseGenerator = (kernel, rng) => {
  const op = operations[kernel];
  return dimsToTest(rng).map((dims) => {
    const integer = rng.chance(0.15);
    const dtype = (): ElementType => (integer ? 'i32' : floatDtype(rng));
    const layouts = [randomLayout(rng, dims), randomLayout(rng, dims)];
    const operands = layouts.map(({ length }, side) =>
      input(dtype(), length, () => (integer ? op.drawInt : op.draw)(rng, side as 0 | 1)),
    );
    const outDtype = dtype();
    const n = sizeOf(dims);
    const dense = contiguous(dims).join();
    const hosts = [0, 1].filter((s) => n > 0 && operands[s].dtype === outDtype && layouts[s].strides.join() === dense);
    const out = hosts.length > 0 && rng.chance(0.3) ? outputIn(1 + rng.pick(hosts), outDtype, n) : output(outDtype, n);
    return makeCase(kernel, {
      p: [out, ...operands],
      i: [dims.length, ...dims, ...layouts[0].strides, ...layouts[1].strides],
      tolerance: op.tolerance,
    });
  });
};

const where: CaseGenerator = (kernel, rng) =>
  dimsToTest(rng).map((dims) => {
    const layouts = [randomLayout(rng, dims), randomLayout(rng, dims), randomLayout(rng, dims)];
    const cond = input(rng.pick(['f32', 'i32', 'u8']), layouts[0].length, () => rng.pick([0, 0, 1, 3]));
    const values = layouts.slice(1).map(({ length }) => input(floatDtype(rng), length, () => rng.normal()));
    return makeCase(kernel, {
      p: [output(floatDtype(rng), sizeOf(dims)), cond, ...values],
      i: [dims.length, ...dims, ...layouts.flatMap((l) => l.strides)],
    });
  });

function values(rng: Rng, dtype: ElementType, length: number): TensorSpec {
  return input(dtype, length, () => (dtype === 'i32' ? wide(rng) : dtype === 'u8' ? rng.int(0, 255) : rng.normal()));
}

const stridedRead: CaseGenerator = (kernel, rng) =>
  dimsToTest(rng).map((dims) => {
    const dtype = rng.pick<ElementType>(['f32', 'bf16', 'i32', 'u8']);
    // Any view: a layout as above, every axis of it perhaps reversed or taken in steps.
    const strides = randomLayout(rng, dims).strides.map((s) => s * rng.pick([1, 1, 1, -1, 2]));
    const { length, origin } = extent(dims, strides);
    const x = { ...values(rng, dtype, length), origin };
    return makeCase(kernel, { p: [output(dtype, sizeOf(dims)), x], i: [dims.length, ...dims, ...strides] });
  });

/** Writes into a part of a larger tensor: transposed or sliced, never two elements to one place. */
const stridedWrite: CaseGenerator = (kernel, rng) =>
  dimsToTest(rng).map((dims) => {
    const adding = kernel === 'strided_add';
    const dtype = rng.pick<ElementType>(adding ? ['f32', 'bf16'] : ['f32', 'bf16', 'i32', 'u8']);
    const axes = dims.map((_, axis) => axis);
    const every = rng.int(1, 2);
    const strides = packed(dims, rng.chance(0.5) ? axes : rng.shuffled(axes), rng.int(0, 3)).map((s) => s * every);
    const out = updated(values(rng, dtype, extent(dims, strides).length));
    return makeCase(kernel, {
      p: [out, values(rng, dtype, sizeOf(dims))],
      i: [dims.length, ...dims, ...strides],
      tolerance: adding ? tolerance(1e-6, 0) : EXACT,
    });
  });

export const stridedCases: Record<string, CaseGenerator> = {
  ...Object.fromEntries(Object.keys(operations).map((name) => [name, binary])),
  where,
  strided_read: stridedRead,
  strided_write: stridedWrite,
  strided_add: stridedWrite,
};
