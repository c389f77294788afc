/**
 * Parameters in a checkpoint's `model` tensors. A parameter is stored under its path, in its dtype and shape; a quantised
 * one under <path>.<type>, as the bytes of its blocks: U8 [.., strips of 16 rows, bytes of a strip] (docs/quantised.md).
 * Blocks hold outputs in rows: those of a parameter that has them in columns are named <path>.columns.<type>, those of
 * one that has more than one axis of inputs (a convolution's) <path>.rows.<type>. What a layer has for decoding in place of
 * its parameters (units as records) is stored under the name that the layer gives it.
 *
 * Bytes go to memory as they are, or they are the memory: a device that can use a file in place does, where a tensor
 * begins on a line of the cache (our files see to that). Nothing can write to such parameters.
 */
import { fstatSync } from 'node:fs';
import { type BlockType, blockTypes, type DType, type HostArray, isBlock, storageOf } from '../backend/dtype.ts';
import { AnsatzError } from '../backend/errors.ts';
import type { Device } from '../backend/index.ts';
import { decodingForms } from '../nn/decoding-forms.ts';
import { buildTree, declared, isTrainable, type Module, type NamedParam, type ParamTree } from '../nn/index.ts';
import { type Shape, Tensor } from '../tensor/index.ts';
import type { SafeDType, SafetensorsFile, TensorSource } from './safetensors.ts';

/** How a parameter's blocks have its outputs in rows: it has them in columns, or as its first axis of several. */
export type Turned = 'columns' | 'rows';

const turnedShape: Readonly<Record<Turned, (shape: Shape) => Shape>> = {
  columns: (s) => [...s.slice(0, -2), s[s.length - 1], s[s.length - 2]],
  rows: ([n, ...rest]) => [n, rest.reduce((a, b) => a * b, 1)],
};

/** Shape of the bytes of a weight in blocks. */
function byteShape(dtype: BlockType, shape: Shape): number[] {
  const strips = Math.ceil(shape[shape.length - 2] / 16);
  const lead = shape.slice(0, -2);
  const count = lead.reduce((a, b) => a * b, strips);
  return [...lead, strips, storageOf(dtype, shape).elements / count];
}

const fileType = { f32: 'F32', bf16: 'BF16', i32: 'I32', u8: 'U8' } as const satisfies Partial<
  Record<DType, SafeDType>
>;

/** A tensor as a source of bytes for safetensors. */
export function tensorSource(path: string, t: Tensor, turned?: Turned): TensorSource {
  const name = turned ? `${path}.${turned}` : path;
  const data = (): Promise<HostArray> => t.bits();
  if (isBlock(t.dtype)) return { name: `${name}.${t.dtype}`, dtype: 'U8', shape: byteShape(t.dtype, t.shape), data };
  return { name: path, dtype: fileType[t.dtype], shape: t.shape, data };
}

/** What is read of a file of tensors. */
export interface TensorFile extends Pick<SafetensorsFile, 'path' | 'names' | 'info' | 'read' | 'readInto'> {
  /** The open file, where tensors lie in it as they are read. */
  readonly fd?: number;
  /** Those that do not. */
  changes?(name: string): boolean;
}

interface Stored {
  readonly type: BlockType;
  readonly name: string;
  /** Of the weight in blocks. */
  readonly shape: Shape;
  readonly turned?: Turned;
}

/** How a quantised parameter is stored; undefined: it is stored as itself, or not at all. */
export function storedBlocks(names: ReadonlySet<string>, path: string, shape: Shape): Stored | undefined {
  if (names.has(path)) return undefined;
  for (const type of blockTypes) {
    if (names.has(`${path}.${type}`)) return { type, name: `${path}.${type}`, shape };
    for (const turned of ['columns', 'rows'] as const) {
      const name = `${path}.${turned}.${type}`;
      if (names.has(name)) return { type, name, shape: turnedShape[turned](shape), turned };
    }
  }
  return undefined;
}

/** @throws AnsatzError when a parameter is quantised: nothing can be trained from it. */
export function refuseQuantised(file: TensorFile, paths: Iterable<string>): void {
  const names = new Set(file.names);
  const refuse = (path: string, type: string): never => {
    throw new AnsatzError(`${file.path}: ${path} is quantised (${type}), which can be used but not trained`, {
      hint: 'train a difference of low rank on it (adapter.kind=lora), or take the run that it was made from: config.json names it',
    });
  };
  const wanted = [...paths];
  for (const path of wanted) {
    const blocks = storedBlocks(names, path, []);
    if (blocks) refuse(path, blocks.type);
  }
  // Records of units are the only bytes that a model has beside blocks.
  const layers = new Set(wanted.map(layerOf));
  const own = new Set(wanted);
  for (const name of names)
    if (!own.has(name) && layers.has(layerOf(name)) && file.info(name).dtype === 'U8') refuse(name, 'records');
}

const layerOf = (path: string): string => path.slice(0, path.lastIndexOf('.') + 1);

/** A tensor as it is to be read. */
interface Wanted {
  readonly path: string;
  readonly name: string;
  readonly dtype: DType;
  readonly shape: Shape;
  readonly trainable: boolean;
}

/** What a model's parameters are in a file. */
function wantedOf(file: TensorFile, model: Module): Wanted[] {
  const names = new Set(file.names);
  const params = declared(model);
  const blocksOf = (p: NamedParam): Stored | undefined => storedBlocks(names, p.path, p.spec.shape);
  const own = new Set(params.map((p) => p.path));
  // A layer's form is told by what it adds; parameters that keep their name may be as they were.
  const forms = params.every((p) => names.has(p.path) || blocksOf(p))
    ? []
    : blockTypes
        .flatMap((type) => decodingForms(model, type))
        .filter(({ adds }) => {
          const fresh = adds.filter((t) => !own.has(t.path));
          return fresh.length > 0 && fresh.every((t) => names.has(t.path));
        });
  const added = forms.flatMap((f) => f.adds).filter((t) => names.has(t.path) && isStoredAs(file, t.path, t));
  const elsewhere = new Set([
    ...forms.flatMap((f) => f.replaces).filter((path) => !names.has(path)),
    ...added.map((t) => t.path),
  ]);
  return [
    ...params.flatMap((p): Wanted[] => {
      if (elsewhere.has(p.path)) return [];
      const blocks = blocksOf(p);
      if (blocks)
        return [{ path: p.path, name: blocks.name, dtype: blocks.type, shape: blocks.shape, trainable: false }];
      const dtype = names.has(p.path) && file.info(p.path).dtype === 'BF16' ? 'bf16' : 'f32';
      return [{ path: p.path, name: p.path, dtype, shape: p.spec.shape, trainable: isTrainable(p) }];
    }),
    ...added.map((t): Wanted => ({ ...t, name: t.path, trainable: false })),
  ];
}

/** Whether a tensor of the file holds what a tensor of this type and shape does. */
function isStoredAs(file: TensorFile, name: string, { dtype, shape }: Pick<Wanted, 'dtype' | 'shape'>): boolean {
  const found = file.info(name);
  const held = isBlock(dtype) ? byteShape(dtype, shape) : shape;
  return found.shape.join() === held.join() && found.dtype === (isBlock(dtype) ? 'U8' : fileType[dtype]);
}

/** Parameters as they are stored, quantised ones in their blocks. */
export async function storedParams(file: TensorFile, model: Module, device: Device): Promise<ParamTree> {
  const tensors = new Map<string, Tensor>();
  const bytes = file.fd === undefined ? 0 : fstatSync(file.fd).size;
  const place = file.fd === undefined ? null : (device.mapFile?.(file.fd, bytes, file.path) ?? null);
  try {
    for (const w of wantedOf(file, model)) {
      const { shape, dtype, offset } = file.info(w.name);
      if (!isStoredAs(file, w.name, w))
        throw new AnsatzError(
          `${file.path}: ${w.name} is ${dtype} [${shape.join(', ')}], the model wants ${w.dtype} [${w.shape.join(', ')}]`,
          { hint: 'the checkpoint belongs to another model spec' },
        );
      const storage = storageOf(w.dtype, w.shape);
      const own = file.changes?.(w.name) ? null : (place?.at(offset, storage.dtype, storage.elements) ?? null);
      const t = own ? Tensor.over(device, own, w.dtype, w.shape) : Tensor.empty(device, w.dtype, w.shape);
      tensors.set(w.path, t.keep());
      if (!own) t.writeBits((await file.read(w.name)) as HostArray);
      if (w.trainable) t.parameter();
    }
  } catch (error) {
    for (const t of tensors.values()) t.dispose();
    throw error;
  } finally {
    place?.close();
  }
  const paths = [...tensors.keys()].map((path) => ({ path }) as NamedParam);
  return buildTree(paths, ({ path }) => tensors.get(path)!);
}
