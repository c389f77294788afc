/** A contiguous row-major array on a device. Tensors are values: ops make new ones (optimisers are the exception). */
import type { Arg, Device, Memory } from '../backend/device.ts';
import {
  type DType,
  type ElementType,
  fromNumbers,
  type HostArray,
  hostArray,
  isBlock,
  storageOf,
  toNumbers,
} from '../backend/dtype.ts';
import { AnsatzError } from '../backend/errors.ts';
import { activeRecorder } from './capture.ts';
import { Storage } from './scope.ts';
import type { TapeNode } from './tape.ts';

export type Shape = readonly number[];

export const sizeOfShape = (shape: Shape): number => {
  let n = 1;
  for (let k = 0; k < shape.length; k++) n *= shape[k];
  return n;
};

export class Tensor {
  readonly storage: Storage;
  readonly dtype: DType;
  readonly shape: Shape;
  readonly size: number;
  /** First element in the storage. */
  readonly offset: number;
  /** True for parameters, and for what was computed from them while gradients are recorded. */
  requiresGrad = false;
  /** The op that made it, when its gradient may be asked for. */
  node: TapeNode | null = null;

  constructor(storage: Storage, dtype: DType, shape: Shape, offset = 0) {
    this.storage = storage;
    this.dtype = dtype;
    this.shape = shape;
    this.size = sizeOfShape(shape);
    this.offset = offset;
  }

  /** An uninitialised tensor. */
  static empty(device: Device, dtype: DType, shape: Shape): Tensor {
    const { dtype: held, elements } = storageOf(dtype, shape);
    return new Tensor(new Storage(device, device.allocate(held, elements)), dtype, shape);
  }

  /** A tensor over memory that holds its values. */
  static over(device: Device, memory: Memory, dtype: DType, shape: Shape): Tensor {
    return new Tensor(new Storage(device, memory), dtype, shape);
  }

  /** A tensor from numbers (rounded to the dtype). */
  static from(device: Device, values: ArrayLike<number>, shape: Shape, dtype: DType = 'f32'): Tensor {
    if (values.length !== sizeOfShape(shape))
      throw new AnsatzError(`${values.length} values do not fill shape [${shape.join(', ')}]`);
    const t = Tensor.empty(device, dtype, shape);
    t.write(values);
    return t;
  }

  get device(): Device {
    return this.storage.device;
  }

  get rank(): number {
    return this.shape.length;
  }

  /** This tensor as a kernel argument, optionally `skip` elements further on. */
  arg(skip = 0): Arg {
    return { memory: this.storage.memory, offset: this.offset + skip };
  }

  /** Overwrites the values from the host. */
  write(values: ArrayLike<number>): void {
    if (values.length !== this.size)
      throw new AnsatzError(`${values.length} values do not fill shape [${this.shape.join(', ')}]`);
    this.writeBits(fromNumbers(this.elementType(), values));
  }

  /** Overwrites the raw bits from the host (bf16 as Uint16Array, blocks as the bytes of their memory). */
  writeBits(bits: HostArray): void {
    // A replay would not repeat it.
    if (activeRecorder())
      throw new AnsatzError('host data was written inside a captured step: make it before capture()');
    this.device.write(this.storage.memory, this.offset, bits);
  }

  /** The values, as soon as the device has them. bf16 comes as Float32Array. */
  async data(): Promise<Float32Array | Int32Array | Uint8Array> {
    const dtype = this.elementType();
    return toNumbers(dtype, await this.bits());
  }

  /** The values now; blocks until the device has them. */
  dataSync(): Float32Array | Int32Array | Uint8Array {
    const dtype = this.elementType();
    return toNumbers(dtype, this.bitsSync());
  }

  /** Raw bits (bf16 as Uint16Array, blocks as the bytes of their memory). */
  bitsSync(): HostArray {
    const out = this.hostArray();
    this.device.readSync(this.storage.memory, this.offset, out);
    return out;
  }

  async bits(): Promise<HostArray> {
    const out = this.hostArray();
    await this.device.read(this.storage.memory, this.offset, out);
    return out;
  }

  private hostArray(): HostArray {
    const { dtype, elements } = storageOf(this.dtype, this.shape);
    return hostArray(dtype, elements);
  }

  private elementType(): ElementType {
    if (isBlock(this.dtype))
      throw new AnsatzError(`a ${this.dtype} tensor has no single values to read or write`, {
        hint: 'dequantise() it first, or take its bits()',
      });
    return this.dtype;
  }

  /** The only value of a one-element tensor. */
  item(): number {
    if (this.size !== 1) throw new AnsatzError(`item() wants one element, shape is [${this.shape.join(', ')}]`);
    return this.dataSync()[0];
  }

  /** Exempts it from its scope: it lives until dispose() or garbage collection. */
  keep(): this {
    this.storage.keep();
    return this;
  }

  /** Marks it as a parameter: kept, and gradients flow to it. */
  parameter(): this {
    this.requiresGrad = true;
    return this.keep();
  }

  dispose(): void {
    this.storage.keep();
    this.storage.release();
  }

  /** The same values without gradient history. Shares the storage. */
  detach(): Tensor {
    return new Tensor(this.storage, this.dtype, this.shape, this.offset);
  }

  toString(): string {
    return `Tensor(${this.dtype} [${this.shape.join(', ')}] on ${this.device.kind})`;
  }
}
