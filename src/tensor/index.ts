/** The engine's public face: tensors, ops, gradients, captured steps. */
import { add } from './ops/binary.ts';
import { ones, zeros } from './ops/create.ts';
import { useGradOps } from './tape.ts';

useGradOps({
  ones: (t) => ones(t.device, t.shape, t.dtype),
  zeros: (t) => zeros(t.device, t.shape, t.dtype),
  add,
});

export { AdaptedTensor } from './adapted.ts';
export { type Captured, capture, record, trace } from './capture.ts';
export { custom } from './custom.ts';
export { type Aval, type GradContext, type Op, opTable } from './op.ts';
export * from './ops/attention.ts';
export * from './ops/binary.ts';
export * from './ops/block-attention.ts';
export * from './ops/block-gate.ts';
export * from './ops/block-parts.ts';
export * from './ops/conv.ts';
export * from './ops/create.ts';
export * from './ops/distil.ts';
export { drawRows } from './ops/draw.ts';
export * from './ops/factored.ts';
export * from './ops/gated.ts';
export * from './ops/gather.ts';
export * from './ops/grouped.ts';
export * from './ops/long-conv.ts';
export * from './ops/loss.ts';
export * from './ops/lsh.ts';
export * from './ops/matmul.ts';
export * from './ops/norm.ts';
export * from './ops/obs.ts';
export * from './ops/optim.ts';
export { type AdafactorParams, adafactor, matricesOf } from './ops/optim-adafactor.ts';
export * from './ops/optim-sign.ts';
export * from './ops/paged.ts';
export * from './ops/paged-blocks.ts';
export * from './ops/paged-conv.ts';
export * from './ops/paged-lsh.ts';
export * from './ops/paged-vectors.ts';
export { type BlockType, blockTypes, dequantise, isBlock, quantise } from './ops/quant.ts';
export { type ConvPart, moduleConvRows } from './ops/quant-rows.ts';
export * from './ops/quant-units.ts';
export * from './ops/random.ts';
export * from './ops/reduce.ts';
export * from './ops/rotary.ts';
export * from './ops/route.ts';
export * from './ops/scan.ts';
export { concat, expand, pad, permute, reshape, slice, split, stack, transpose } from './ops/shape.ts';
export * from './ops/unary.ts';
export * from './ops/unit-sparsity.ts';
export { scope } from './scope.ts';
export { gradEnabled, gradients, noGrad, pullBack, recording } from './tape.ts';
export { type Shape, sizeOfShape, Tensor } from './tensor.ts';
export { type Watcher, watch } from './watch.ts';
