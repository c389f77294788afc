/**
 * Parameters in a checkpoint's `model` tensors. A parameter is stored under its path, in its dtype and shape; a quantised
 * one under <path>.<type>, as the bytes of its blocks: U8 [.., strips of 16 rows, bytes of a strip] (docs/quantised.md).
 * Blocks hold outputs in rows: those of a parameter that has them in columns are named <path>.columns.<type>.
 * Bytes go to memory as they are.
 */
import { type BlockType, blockTypes, type HostArray, isBlock, storageOf } from '../backend/dtype.ts';
import { AnsatzError } from '../backend/errors.ts';
import type { Device } from '../backend/index.ts';
import { buildTree, isTrainable, type NamedParam, type ParamTree } from '../nn/index.ts';
import { Tensor } from '../tensor/index.ts';
import type { SafetensorsFile, TensorSource } from './safetensors.ts';

const COLUMNS = '.columns';

/** Shape of the bytes of a weight in blocks. */
function byteShape(dtype: BlockType, shape: readonly number[]): number[] {
  const strips = Math.ceil(shape[shape.length - 2] / 16);
  const lead = shape.slice(0, -2);
  const count = lead.reduce((a, b) => a * b, strips);
  return [...lead, strips, storageOf(dtype, shape).elements / count];
}

/** A tensor as a source of bytes for safetensors. `columns`: blocks of a parameter that has its outputs in columns. */
export function tensorSource(path: string, t: Tensor, columns = false): TensorSource {
  const name = columns ? `${path}${COLUMNS}` : path;
  if (isBlock(t.dtype))
    return { name: `${name}.${t.dtype}`, dtype: 'U8', shape: byteShape(t.dtype, t.shape), data: () => t.bits() };
  const dtype = { f32: 'F32', bf16: 'BF16', i32: 'I32', u8: 'U8' }[t.dtype] as TensorSource['dtype'];
  return { name: path, dtype, shape: t.shape, data: () => t.bits() };
}

/** What is read of a file of tensors. */
export type TensorFile = Pick<SafetensorsFile, 'path' | 'names' | 'info' | 'read' | 'readInto'>;

interface Stored {
  readonly type: BlockType;
  readonly name: string;
  readonly shape: readonly number[];
}

/** How a quantised parameter is stored; undefined: it is stored as itself, or not at all. */
function storedBlocks(names: ReadonlySet<string>, path: string, shape: readonly number[]): Stored | undefined {
  if (names.has(path)) return undefined;
  const turned = [...shape.slice(0, -2), shape[shape.length - 1], shape[shape.length - 2]];
  for (const type of blockTypes) {
    if (names.has(`${path}.${type}`)) return { type, name: `${path}.${type}`, shape };
    const name = `${path}${COLUMNS}.${type}`;
    if (names.has(name)) return { type, name, shape: turned };
  }
  return undefined;
}

/** @throws AnsatzError when a parameter is quantised: nothing can be trained from it. */
export function refuseQuantised(file: TensorFile, paths: Iterable<string>): void {
  const names = new Set(file.names);
  for (const path of paths) {
    const blocks = storedBlocks(names, path, []);
    if (blocks)
      throw new AnsatzError(`${file.path}: ${path} is quantised (${blocks.type}), which can be used but not trained`, {
        hint: 'take the run that this one was made from: config.json names it',
      });
  }
}

/** Parameters as they are stored, quantised ones in their blocks. */
export async function storedParams(
  file: TensorFile,
  params: readonly NamedParam[],
  device: Device,
): Promise<ParamTree> {
  const names = new Set(file.names);
  const tensors = new Map<string, Tensor>();
  try {
    for (const p of params) {
      const blocks = storedBlocks(names, p.path, p.spec.shape);
      const name = blocks?.name ?? p.path;
      const wanted = blocks ? byteShape(blocks.type, blocks.shape) : p.spec.shape;
      const { shape, dtype } = file.info(name);
      if (shape.join() !== wanted.join() || (blocks && dtype !== 'U8'))
        throw new AnsatzError(
          `${file.path}: ${name} is [${shape.join(', ')}], the model wants [${wanted.join(', ')}]`,
          {
            hint: 'the checkpoint belongs to another model spec',
          },
        );
      const t = Tensor.empty(device, blocks?.type ?? 'f32', blocks?.shape ?? p.spec.shape).keep();
      tensors.set(p.path, t);
      t.writeBits((await file.read(name)) as HostArray);
      if (isTrainable(p) && !blocks) t.parameter();
    }
  } catch (error) {
    for (const t of tensors.values()) t.dispose();
    throw error;
  }
  return buildTree(params, ({ path }) => tensors.get(path)!);
}
