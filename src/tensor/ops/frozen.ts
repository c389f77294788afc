/**
 * Products with weights in blocks that training goes through but does not change (QLoRA, Dettmers et al. 2023): the weight
 * is dequantised for one product and forgotten, in the forward pass and again in the backward one, and gradients flow to the
 * rows alone: dx = alpha dy W.
 */
import { custom } from '../custom.ts';
import type { Inputs } from '../op.ts';
import { scope } from '../scope.ts';
import { gradEnabled } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { cast, reduceTo } from './binary.ts';
import { type Compute, matmul } from './matmul.ts';
import { dequantise } from './quant.ts';

interface Params {
  readonly alpha: number;
  readonly compute: Compute;
  readonly out: Tensor['dtype'];
}

/** Whether somebody wants a gradient of what a product is made of. */
export const wantsGradient = (inputs: Inputs): boolean => gradEnabled() && inputs.some((t) => t?.requiresGrad);

/** Products round their operands to bf16 when they compute in it: so may the weight be. */
const plain = (w: Tensor, { compute }: Params): Tensor => dequantise(w, compute === 'bf16' ? 'bf16' : 'f32');

/** alpha x W^T + bias + addend of rows [R, in] and a weight in blocks [out, in]. */
export function frozenMatmul(x: Tensor, w: Tensor, bias: Tensor | null, addend: Tensor | null, p: Params): Tensor {
  const { alpha, compute, out } = p;
  return custom(
    'frozen_matmul',
    [x, bias, addend],
    () => [scope(() => matmul(x, plain(w, p), { transB: true, alpha, compute, out, bias, addend }))],
    ({ grads: [dy], needs }) => [
      needs(0) ? scope(() => matmul(dy!, plain(w, p), { alpha, compute, out: x.dtype })) : null,
      bias && needs(1) ? reduceTo(dy!, bias.shape) : null,
      addend && needs(2) ? cast(dy!, addend.dtype) : null,
    ],
  )[0];
}

/** A product of grouped rows, as groupedMatmul() makes it of a plain weight [E, out, in]. */
type Grouped = (x: Tensor, w: Tensor, transB: boolean, out: Tensor['dtype']) => Tensor;

/** The same for rows of groups. */
export const frozenGrouped = (x: Tensor, w: Tensor, p: Params, product: Grouped): Tensor =>
  custom(
    'frozen_grouped_matmul',
    [x],
    () => [scope(() => product(x, plain(w, p), true, p.out))],
    ({ grads: [dy] }) => [scope(() => product(dy!, plain(w, p), false, x.dtype))],
  )[0];
