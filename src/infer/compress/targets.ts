/** Which parameters of a model can be kept in fewer bits or thinned out, and in what form they are worked on. */
import { storageOf } from '../../backend/dtype.ts';
import type { Model } from '../../model/model.ts';
import { decodingForms } from '../../nn/decoding-forms.ts';
import { declared, flatten, type ParamTree } from '../../nn/index.ts';
import { isBlock, permute, reshape, type Tensor } from '../../tensor/index.ts';
import type { Turned } from '../../train/stored.ts';
import { weightUses } from '../weights.ts';

const uses = ['matrix', 'experts', 'columns', 'table', 'shared', 'factor', 'kernel'] as const;

export interface Target {
  readonly path: string;
  /** As in weightUses(). */
  readonly use: (typeof uses)[number];
  readonly weight: Tensor;
  /** Embeddings and output matrices: read row by row, or the last thing before the logits. */
  readonly edge: boolean;
  /** Inputs of a row. */
  readonly inputs: number;
  /** Weights that many outputs share (factors, convolutions over modules): few, and each counts often. */
  readonly shared: boolean;
  /** Decoding wants it whole, to bring it into a form of its layer's own. */
  readonly repacked: boolean;
}

/** Those that are multiplied by or looked up in, in the order in which a pass comes to them. */
export function targetsOf(model: Model, params: ParamTree): Target[] {
  const tensors = new Map(flatten(params).map(({ path, tensor }) => [path, tensor]));
  const roles = new Map(declared(model).map(({ path, spec }) => [path, spec.role]));
  const other = new Set(decodingForms(model, 'q8').flatMap((f) => f.replaces));
  return [...weightUses(model)].flatMap(([path, found]) => {
    const weight = tensors.get(path);
    const use = uses.find((u) => u === found);
    if (!use || !weight || isBlock(weight.dtype)) return [];
    const edge = use === 'table' || use === 'shared' || roles.get(path) === 'output';
    const shared = use === 'factor' || use === 'kernel';
    const shape = rowsShape(use, weight.shape);
    return [{ path, use, weight, edge, inputs: shape[shape.length - 1], shared, repacked: other.has(path) }];
  });
}

/** Shape with outputs in rows, [.., out, in]. */
function rowsShape(use: Target['use'], shape: readonly number[]): readonly number[] {
  if (use === 'columns') return [shape[0], shape[2], shape[1]];
  return use === 'kernel' ? [shape[0], shape.slice(1).reduce((a, b) => a * b, 1)] : shape;
}

/** The weight with its outputs in rows. */
export function inRows({ use, weight }: Target): Tensor {
  if (use === 'columns') return permute(weight, [0, 2, 1]);
  return use === 'kernel' ? reshape(weight, rowsShape(use, weight.shape)) : weight;
}

/** What that was, for those who read the blocks. */
export const turnedOf = ({ use }: Target): Turned | undefined =>
  use === 'columns' ? 'columns' : use === 'kernel' ? 'rows' : undefined;

/** Whether blocks of a type take less memory than the weight does: they are padded to 16 rows and 64 columns. */
export const saves = ({ use, weight }: Target, type: 'q8' | 'q4'): boolean =>
  storageOf(type, rowsShape(use, weight.shape)).elements < weight.storage.memory.bytes;

/** Bytes of a tree's tensors. */
export function weightBytes(params: ParamTree): number {
  const memories = new Set(flatten(params).map(({ tensor }) => tensor.storage.memory));
  return [...memories].reduce((n, m) => n + m.bytes, 0);
}
