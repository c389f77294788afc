/**
 * Stacks of layers that start as copies of a single one: sparse upcycling (Komatsuzaki et al. 2023), by which experts
 * begin as the dense layer of their block.
 */
import type { Shape } from '../tensor/index.ts';
import type { ParamSpec } from './module.ts';

/** Where the single layer has the parameter: "blocks.1.ffn.up" for "blocks.1.ffn.experts.up". */
export const singleOf = (path: string): string => path.replace(/[^.]+\.([^.]+)$/, '$1');

/** Shape of the single layer's parameter. */
export function singleShape({ shape, stackOf }: ParamSpec): Shape {
  const single = shape.slice(1);
  return stackOf?.turned ? single.reverse() : single;
}

/** Values of the stack, of which each layer is the single one. */
export function stacked(spec: ParamSpec, single: ArrayLike<number>): Float32Array {
  const [layers, rows, cols = 1] = spec.shape;
  const each = rows * cols;
  const all = new Float32Array(layers * each);
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < cols; c++) all[r * cols + c] = single[spec.stackOf?.turned ? c * rows + r : r * cols + c];
  for (let n = 1; n < layers; n++) all.copyWithin(n * each, 0, each);
  return all;
}
