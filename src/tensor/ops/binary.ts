/** Elementwise arithmetic of two tensors with NumPy broadcasting. */
import { apply, defineOp, type GradContext, type Op } from '../op.ts';
import type { Shape, Tensor } from '../tensor.ts';
import { broadcastShapes, broadcastStrides, collapse, promote, sameShape, wantFloat } from './common.ts';
import { zeros } from './create.ts';
import { sum } from './reduce.ts';
import { expand, reshape } from './shape.ts';
import { affine, log, recip, square } from './unary.ts';

type None = Record<string, never>;
const none: None = {};
type BinaryGradient = (c: GradContext<None>, dy: Tensor) => [() => Tensor, () => Tensor];

/** Sums a gradient over the axes along which its operand was repeated, and gives it the operand's dtype. */
export function reduceTo(grad: Tensor, shape: Shape): Tensor {
  if (sameShape(grad.shape, shape)) return grad;
  const skip = grad.rank - shape.length;
  const axes = grad.shape.map((_, k) => k).filter((k) => k < skip || (shape[k - skip] === 1 && grad.shape[k] !== 1));
  return reshape(axes.length ? sum(grad, axes) : grad, shape);
}

function binary(name: string, gradient?: BinaryGradient): (a: Tensor, b: Tensor) => Tensor {
  const op: Op<None> = defineOp<None>({
    name,
    infer: ([a, b]) => [
      {
        shape: sameShape(a!.shape, b!.shape) ? a!.shape : broadcastShapes(a!.shape, b!.shape, name),
        dtype: promote(a!.dtype, b!.dtype, name),
      },
    ],
    launch: ([a, b], [y]) => {
      const args = [y.arg(), a!.arg(), b!.arg()];
      if (sameShape(a!.shape, b!.shape)) return { kernel: name, args, ints: [1, y.size, 1, 1] };
      const c = collapse(y.shape, [broadcastStrides(a!.shape, y.shape), broadcastStrides(b!.shape, y.shape)]);
      return { kernel: name, args, ints: [c.dims.length, ...c.dims, ...c.strides[0], ...c.strides[1]] };
    },
    flops: (_, [y]) => y.size,
    gradient:
      gradient &&
      ((c) => {
        const [da, db] = gradient(c, c.grads[0]!);
        return [c.needs(0) ? fit(da(), c.inputs[0]!) : null, c.needs(1) ? fit(db(), c.inputs[1]!) : null];
      }),
  });
  return (a, b) => apply(op, [a, b], none)[0];
}

const fit = (grad: Tensor, operand: Tensor): Tensor => cast(reduceTo(grad, operand.shape), operand.dtype);

export const add = binary('add', (_, dy) => [() => dy, () => dy]);
export const sub = binary('sub', (_, dy) => [() => dy, () => affine(dy, -1, 0)]);
export const mul: (a: Tensor, b: Tensor) => Tensor = binary('mul', ({ inputs: [a, b] }, dy) => [
  () => mul(dy, b!),
  () => mul(dy, a!),
]);
export const div = binary('div', ({ inputs: [a, b] }, dy) => [
  () => mul(dy, recip(b!)),
  () => affine(mul(dy, mul(a!, recip(square(b!)))), -1, 0),
]);
/** Where the operands are equal the gradient is shared half and half. */
export const maximum = binary('maximum', ({ inputs: [a, b] }, dy) => [
  () => larger(a!, b!, dy),
  () => larger(b!, a!, dy),
]);
export const minimum = binary('minimum', ({ inputs: [a, b] }, dy) => [
  () => larger(b!, a!, dy),
  () => larger(a!, b!, dy),
]);
/** a^b for a >= 0, or for whole b. The gradients' limits at b = 0 and at a = 0 are 0, where the formulas have 0 inf. */
export const pow: (a: Tensor, b: Tensor) => Tensor = binary('pow', ({ inputs: [a, b], outputs: [y] }, dy) => [
  () => selected(b!, mul(dy, mul(b!, pow(a!, affine(b!, 1, -1))))),
  () => selected(a!, mul(dy, mul(y, log(a!)))),
]);

/** grad where cond is not 0, else 0: chosen, since a product with 0 would let inf and NaN through. */
export const selected = (cond: Tensor, grad: Tensor): Tensor =>
  where(flag(cond), grad, zeros(grad.device, [], grad.dtype));
const flag = (cond: Tensor): Tensor => (cond.dtype === 'bf16' ? cast(cond, 'f32') : cond);
/** dy where a > b, half of it where a = b. */
const larger = (a: Tensor, b: Tensor, dy: Tensor): Tensor =>
  where(flag(gt(a, b)), dy, selected(eq(a, b), affine(dy, 0.5, 0)));

/** Comparisons give 0 or 1 in the operands' dtype. */
export const eq = binary('eq');
export const ne = binary('ne');
export const lt = binary('lt');
export const le = binary('le');
export const gt = binary('gt');
export const ge = binary('ge');

/** cond != 0 ? a : b, with broadcasting. */
const whereOp = defineOp<None>({
  name: 'where',
  infer: ([c, a, b]) => {
    const shape = broadcastShapes(broadcastShapes(a!.shape, b!.shape, 'where'), c!.shape, 'where');
    return [{ shape, dtype: promote(a!.dtype, b!.dtype, 'where') }];
  },
  launch: (inputs, [y]) => {
    const c = collapse(
      y.shape,
      inputs.map((t) => broadcastStrides(t!.shape, y.shape)),
    );
    return {
      kernel: 'where',
      args: [y.arg(), ...inputs.map((t) => t!.arg())],
      ints: [c.dims.length, ...c.dims, ...c.strides.flat()],
    };
  },
  flops: (_, [y]) => y.size,
  gradient: ({ inputs: [c, a, b], grads: [dy], needs }) => {
    const zero = zeros(dy!.device, [], dy!.dtype);
    return [null, needs(1) ? fit(where(c!, dy!, zero), a!) : null, needs(2) ? fit(where(c!, zero, dy!), b!) : null];
  },
});
export const where = (cond: Tensor, a: Tensor, b: Tensor): Tensor => apply(whereOp, [cond, a, b], none)[0];

/** Converts the dtype; floats become integers by truncation. The gradient is cast back. */
const castOp = defineOp<{ dtype: Tensor['dtype'] }>({
  name: 'cast',
  infer: ([x], p) => [{ shape: x!.shape, dtype: p.dtype }],
  launch: ([x], [y]) => ({ kernel: 'cast', args: [y.arg(), x!.arg()], ints: [y.size] }),
  flops: () => 0,
  gradient: ({ inputs: [x], grads: [dy] }) => [cast(dy!, x!.dtype)],
});
export const cast = (x: Tensor, dtype: Tensor['dtype']): Tensor =>
  x.dtype === dtype ? x : apply(castOp, [x], { dtype })[0];

/** ca a + cb b for tensors of one shape. */
const addScaledOp = defineOp<{ ca: number; cb: number }>({
  name: 'add_scaled',
  infer: ([a, b]) => {
    if (!sameShape(a!.shape, b!.shape)) broadcastShapes(a!.shape, b!.shape, 'add_scaled (same shapes)');
    return [{ shape: a!.shape, dtype: promote(a!.dtype, b!.dtype, 'add_scaled') }];
  },
  launch: ([a, b], [y], p) => ({
    kernel: 'add_scaled',
    args: [y.arg(), a!.arg(), b!.arg()],
    ints: [y.size],
    floats: [p.ca, p.cb],
  }),
  flops: (_, [y]) => 3 * y.size,
  gradient: ({ inputs: [a, b], grads: [dy], params }) => [
    cast(affine(dy!, params.ca, 0), a!.dtype),
    cast(affine(dy!, params.cb, 0), b!.dtype),
  ],
});
export const addScaled = (a: Tensor, b: Tensor, ca: number, cb: number): Tensor =>
  apply(addScaledOp, [a, b], { ca, cb })[0];

/** x s c for a one-element f32 tensor s. */
const scaleByOp = defineOp<{ c: number }>({
  name: 'scale_by',
  infer: ([x]) => {
    wantFloat(x, 'scale_by');
    return [{ shape: x!.shape, dtype: x!.dtype }];
  },
  launch: ([x, s], [y], p) => ({
    kernel: 'scale_by',
    args: [y.arg(), x!.arg(), s!.arg()],
    ints: [y.size],
    floats: [p.c],
  }),
  flops: (_, [y]) => 2 * y.size,
  gradient: ({ inputs: [x, s], grads: [dy], params, needs }) => [
    needs(0) ? scaleBy(dy!, s!, params.c) : null,
    needs(1) ? reshape(affine(cast(sum(mul(dy!, x!)), 'f32'), params.c, 0), s!.shape) : null,
  ],
});
export const scaleBy = (x: Tensor, s: Tensor, c = 1): Tensor => apply(scaleByOp, [x, s], { c })[0];

/** Repeats a tensor to a shape it broadcasts to. */
export const broadcastTo = (x: Tensor, shape: Shape): Tensor => (sameShape(x.shape, shape) ? x : expand(x, shape));
