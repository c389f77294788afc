/** Elementwise functions of one tensor. Same shape and dtype out. */
import { apply, defineOp, type GradContext, type Op } from '../op.ts';
import type { Tensor } from '../tensor.ts';
import { eq, mul, selected } from './binary.ts';
import { like, wantFloat } from './common.ts';
import { zeros } from './create.ts';

type None = Record<string, never>;
const none: None = {};
type UnaryGradient = (c: GradContext<None>, dy: Tensor) => Tensor;

/** A kernel f(x) with an optional gradient rule. */
function unary(name: string, gradient?: UnaryGradient): (x: Tensor) => Tensor {
  const op: Op<None> = defineOp<None>({
    name,
    infer: (inputs) => {
      wantFloat(inputs[0], name);
      return like(inputs);
    },
    launch: ([x], [y]) => ({ kernel: name, args: [y.arg(), x!.arg()], ints: [y.size] }),
    flops: (_, [y]) => y.size,
    gradient: gradient && ((c) => [gradient(c, c.grads[0]!)]),
  });
  return (x) => apply(op, [x], none)[0];
}

/** A backward kernel dx = f(saved, dy); not differentiable itself. */
function backward(name: string): (saved: Tensor, dy: Tensor) => Tensor {
  const op: Op<None> = defineOp<None>({
    name,
    infer: (inputs) => like(inputs),
    launch: ([s, dy], [dx]) => ({ kernel: name, args: [dx.arg(), s!.arg(), dy!.arg()], ints: [dx.size] }),
    flops: (_, [dx]) => 2 * dx.size,
  });
  return (saved, dy) => apply(op, [saved, dy], none)[0];
}

const geluBwd = backward('gelu_bwd');
const geluErfBwd = backward('gelu_erf_bwd');
const siluBwd = backward('silu_bwd');
const reluBwd = backward('relu_bwd');
const relu2Bwd = backward('relu2_bwd');
const softplusBwd = backward('softplus_bwd');
const tanhBwd = backward('tanh_bwd');
const sigmoidBwd = backward('sigmoid_bwd');

/** x^e for a constant e. */
const powcOp = defineOp<{ e: number }>({
  name: 'powc',
  infer: (inputs) => {
    wantFloat(inputs[0], 'powc');
    return like(inputs);
  },
  launch: ([x], [y], p) => ({ kernel: 'powc', args: [y.arg(), x!.arg()], ints: [y.size], floats: [p.e] }),
  flops: (_, [y]) => y.size,
  // x^0 is 1 everywhere: the formula would give 0 inf at 0.
  gradient: ({ inputs: [x], grads: [dy], params: { e } }) => [
    e === 0 ? zeros(dy!.device, dy!.shape, dy!.dtype) : mul(dy!, affine(powc(x!, e - 1), e, 0)),
  ],
});
export const powc = (x: Tensor, e: number): Tensor => apply(powcOp, [x], { e })[0];

/** a x + b for constants a and b. */
const affineOp = defineOp<{ a: number; b: number }>({
  name: 'affine',
  infer: (inputs) => {
    wantFloat(inputs[0], 'affine');
    return like(inputs);
  },
  launch: ([x], [y], p) => ({ kernel: 'affine', args: [y.arg(), x!.arg()], ints: [y.size], floats: [p.a, p.b] }),
  flops: (_, [y]) => 2 * y.size,
  gradient: ({ grads: [dy], params }) => [affine(dy!, params.a, 0)],
});
export const affine = (x: Tensor, a: number, b: number): Tensor => apply(affineOp, [x], { a, b })[0];
export const scale = (x: Tensor, a: number): Tensor => affine(x, a, 0);

/** x limited to [lo, hi]; the gradient passes where x is not cut off (at the bounds it passes). */
const clampOp = defineOp<{ lo: number; hi: number }>({
  name: 'clamp',
  infer: (inputs) => {
    wantFloat(inputs[0], 'clamp');
    return like(inputs);
  },
  launch: ([x], [y], p) => ({ kernel: 'clamp', args: [y.arg(), x!.arg()], ints: [y.size], floats: [p.lo, p.hi] }),
  flops: (_, [y]) => 2 * y.size,
  gradient: ({ inputs: [x], outputs: [y], grads: [dy] }) => [selected(eq(x!, y), dy!)],
});
export const clamp = (x: Tensor, lo: number, hi: number): Tensor => apply(clampOp, [x], { lo, hi })[0];

export const neg = unary('neg', (_, dy) => affine(dy, -1, 0));
export const sign = unary('sign');
export const abs = unary('abs', ({ inputs: [x] }, dy) => mul(dy, sign(x!)));
export const square = unary('square', ({ inputs: [x] }, dy) => affine(mul(dy, x!), 2, 0));
export const sqrt = unary('sqrt', ({ outputs: [y] }, dy) => affine(mul(dy, recip(y)), 0.5, 0));
export const rsqrt = unary('rsqrt', ({ outputs: [y] }, dy) => affine(mul(dy, powc(y, 3)), -0.5, 0));
export const recip = unary('recip', ({ outputs: [y] }, dy) => affine(mul(dy, square(y)), -1, 0));
export const exp = unary('exp', ({ outputs: [y] }, dy) => mul(dy, y));
export const log = unary('log', ({ inputs: [x] }, dy) => mul(dy, recip(x!)));
export const sin = unary('sin', ({ inputs: [x] }, dy) => mul(dy, cos(x!)));
export const cos: (x: Tensor) => Tensor = unary('cos', ({ inputs: [x] }, dy) => affine(mul(dy, sin(x!)), -1, 0));
export const tanh = unary('tanh', ({ outputs: [y] }, dy) => tanhBwd(y, dy));
export const sigmoid = unary('sigmoid', ({ outputs: [y] }, dy) => sigmoidBwd(y, dy));
export const relu = unary('relu', ({ inputs: [x] }, dy) => reluBwd(x!, dy));
/** max(x, 0)^2 (So et al. 2021, Primer). */
export const relu2 = unary('relu2', ({ inputs: [x] }, dy) => relu2Bwd(x!, dy));
/** Tanh form of GELU (Hendrycks and Gimpel 2016). */
export const gelu = unary('gelu', ({ inputs: [x] }, dy) => geluBwd(x!, dy));
/** Exact GELU, x Phi(x). */
export const geluErf = unary('gelu_erf', ({ inputs: [x] }, dy) => geluErfBwd(x!, dy));
export const silu = unary('silu', ({ inputs: [x] }, dy) => siluBwd(x!, dy));
export const softplus = unary('softplus', ({ inputs: [x] }, dy) => softplusBwd(x!, dy));

const stepKernel = unary('step');
/** 1 where x > 0 (or x >= 0 with `closed`), else 0. No gradient. */
function step(x: Tensor, closed = false): Tensor {
  return closed ? affine(stepKernel(affine(x, -1, 0)), -1, 1) : stepKernel(x);
}

export { step };
