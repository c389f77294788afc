/**
 * How parameters lie here and in a file of another kind. A tensor of the file is made of blocks, each of them a
 * contiguous piece of one parameter of ours (the rows of the keys in a packed matrix, an expert). The same list serves
 * both ways: writing reads pieces of ours, reading fills them.
 */
import { AnsatzError } from '../../backend/errors.ts';
import type { AnyArray } from '../../train/safetensors.ts';
import type { TensorFile } from '../../train/stored.ts';
import { fromBfloats, fromHalves } from './floats.ts';

export interface Block {
  /** Path of the parameter, and the block's first element in it. */
  readonly ours: string;
  readonly from: number;
  /** The block's first element in the tensor of the file. */
  readonly to: number;
  /** Shape in the file; ours is the same, or [cols, rows] if `transposed`. */
  readonly rows: number;
  readonly cols: number;
  readonly transposed?: boolean;
  /** Value in the file over ours. */
  readonly scale?: number;
  /** Rows of each head, whose pairs of dimensions that turn together the file has side by side or in halves. */
  readonly pairs?: { readonly headWidth: number; readonly file: 'side-by-side' | 'halves' };
}

export interface FileTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly blocks: readonly Block[];
  /** The value of all elements, where we have no parameter. */
  readonly fill?: number;
  /** What it is, for block formats: matrices are quantised, other tensors are not. */
  readonly role: 'matrix' | 'output' | 'other';
}

export const elementsOf = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

/** Our row for a row of the file. */
export function rowOf(row: number, pairs: NonNullable<Block['pairs']>): number {
  const half = pairs.headWidth / 2;
  const within = row % pairs.headWidth;
  const head = row - within;
  return pairs.file === 'side-by-side'
    ? head + (within % 2) * half + Math.floor(within / 2)
    : head + (within % half) * 2 + Math.floor(within / half);
}

/** Copies a block between ours and the file's, as f32. */
function copy(block: Block, ours: Float32Array, file: Float32Array, direction: 'out' | 'in'): void {
  const { rows, cols, transposed = false, scale = 1, pairs } = block;
  const [from, to] = direction === 'out' ? [ours, file] : [file, ours];
  for (let r = 0; r < rows; r++) {
    const own = pairs ? rowOf(r, pairs) : r;
    if (!transposed) {
      const [a, b] = direction === 'out' ? [own, r] : [r, own];
      to.set(from.subarray(a * cols, (a + 1) * cols), b * cols);
    } else if (direction === 'out') for (let c = 0; c < cols; c++) to[r * cols + c] = from[c * rows + own];
    else for (let c = 0; c < cols; c++) to[c * rows + own] = from[r * cols + c];
  }
  if (scale === 1) return;
  // Division on the way back: the inverse of a factor may have no exact value.
  if (direction === 'out') for (let k = 0; k < to.length; k++) to[k] *= scale;
  else for (let k = 0; k < to.length; k++) to[k] /= scale;
}

/** Reads elements of a tensor as f32; only types that f32 holds exactly. */
export async function readFloats(
  file: TensorFile,
  name: string,
  first = 0,
  count = elementsOf(file.info(name).shape),
): Promise<Float32Array> {
  const { dtype } = file.info(name);
  if (dtype !== 'F32' && dtype !== 'F16' && dtype !== 'BF16')
    throw new AnsatzError(`${file.path}: tensor "${name}" is ${dtype}; only F32, F16 and BF16 weights can be read`, {
      hint: 'use the run that it was made from',
    });
  const raw: AnyArray = dtype === 'F32' ? new Float32Array(count) : new Uint16Array(count);
  await file.readInto(name, raw, first * raw.BYTES_PER_ELEMENT);
  if (dtype === 'F32') return raw as Float32Array;
  return dtype === 'F16' ? fromHalves(raw as Uint16Array) : fromBfloats(raw as Uint16Array);
}

/** A tensor of the file from our parameters. */
export async function writeOut(tensor: FileTensor, ours: TensorFile): Promise<Float32Array> {
  const out = new Float32Array(elementsOf(tensor.shape));
  if (tensor.fill !== undefined) return out.fill(tensor.fill);
  for (const block of tensor.blocks) {
    const size = block.rows * block.cols;
    copy(block, await readFloats(ours, block.ours, block.from, size), out.subarray(block.to, block.to + size), 'out');
  }
  return out;
}

/** Where blocks of our parameters lie in files: by path. */
export function bySource(tensors: readonly FileTensor[]): Map<string, { tensor: FileTensor; block: Block }[]> {
  const all = new Map<string, { tensor: FileTensor; block: Block }[]>();
  for (const tensor of tensors)
    for (const block of tensor.blocks) all.set(block.ours, [...(all.get(block.ours) ?? []), { tensor, block }]);
  return all;
}

/** A parameter of ours from its blocks; what no block covers is 0. */
export async function readIn(
  size: number,
  blocks: readonly { tensor: FileTensor; block: Block }[],
  fileOf: (name: string) => TensorFile,
): Promise<Float32Array> {
  const out = new Float32Array(size);
  for (const { tensor, block } of blocks) {
    const count = block.rows * block.cols;
    const theirs = await readFloats(fileOf(tensor.name), tensor.name, block.to, count);
    copy(block, out.subarray(block.from, block.from + count), theirs, 'in');
  }
  return out;
}
