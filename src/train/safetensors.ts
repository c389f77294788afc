// Reading and writing safetensors files (https://github.com/huggingface/safetensors#format):
//
//   8 bytes    n, little-endian u64: length of the header
//   n bytes    JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__": {...}}
//   the rest   tensor bytes; offsets count from here, and tensors fill it without holes or overlaps
//
// The writer pulls one tensor at a time, so saving needs memory for the largest tensor only. The reader checks the
// whole header when it opens a file and reads tensors by position, so that one tensor can be taken from a huge file.
// Bytes are little-endian in the file and in every machine Node runs the native kernels on; none are swapped.
import { createHash } from 'node:crypto';
import { type FileHandle, open } from 'node:fs/promises';
import { AnsatzError } from '../backend/errors.ts';
import {
  type AnyArray,
  ARRAY_OF,
  type ArrayOf,
  headerOf,
  type Layout,
  parseHeader,
  planLayout,
  type SafeDType,
  type TensorInfo,
  type TensorSource,
} from './safetensors-header.ts';

export type { TensorInfo, TensorSource } from './safetensors-header.ts';
export { type AnyArray, ARRAY_OF, type ArrayOf, elementBytes, type SafeDType } from './safetensors-header.ts';

export interface Written {
  bytes: number;
  /** Of the whole file, computed while writing so that a manifest costs no second read. */
  sha256: string;
}

// One write or read call moves at most this much: Node refuses 2 GiB at once, and hashing in slices keeps timers alive.
const SLICE = 8 << 20;

/** Writes a file, fsynced before returning. The caller makes it atomic if it must be (see run/checkpoint.ts). */
export async function writeSafetensors(
  path: string,
  tensors: readonly TensorSource[],
  metadata: Readonly<Record<string, string>> = {},
): Promise<Written> {
  const { order, spans } = planLayout(path, tensors);
  const file = await open(path, 'w');
  const hash = createHash('sha256');
  let position = 0;
  const append = async (view: ArrayBufferView) => {
    for (let at = 0; at < view.byteLength; ) {
      const slice = new Uint8Array(view.buffer, view.byteOffset + at, Math.min(SLICE, view.byteLength - at));
      await writeAll(file, slice, position);
      hash.update(slice);
      at += slice.byteLength;
      position += slice.byteLength;
    }
  };
  try {
    await append(headerOf(order, spans, metadata));
    for (let k = 0; k < order.length; k++) {
      const view = await order[k].data();
      const expected = spans[k][1] - spans[k][0];
      if (view.byteLength !== expected) {
        throw new AnsatzError(
          `${path}: tensor "${order[k].name}" (${order[k].dtype} [${order[k].shape}]) needs ${expected} bytes, ` +
            `its data has ${view.byteLength}`,
        );
      }
      await append(view);
    }
    await file.sync();
  } finally {
    await file.close();
  }
  return { bytes: position, sha256: hash.digest('hex') };
}

async function writeAll(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.byteLength; ) {
    const { bytesWritten } = await file.write(bytes, done, bytes.byteLength - done, position + done);
    done += bytesWritten;
  }
}

/** An open safetensors file. Close it when done; reads may run at the same time. */
export class SafetensorsFile {
  readonly path: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly #file: FileHandle;

  private constructor(path: string, file: FileHandle, layout: Layout) {
    this.path = path;
    this.#file = file;
    this.metadata = layout.metadata;
    this.tensors = layout.tensors;
  }

  static async open(path: string): Promise<SafetensorsFile> {
    let file: FileHandle;
    try {
      file = await open(path, 'r');
    } catch (error) {
      throw new AnsatzError(`${path}: cannot be opened (${(error as NodeJS.ErrnoException).code})`, { cause: error });
    }
    try {
      const layout = await parseHeader(path, file);
      return new SafetensorsFile(path, file, layout);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  get names(): string[] {
    return [...this.tensors.keys()];
  }

  /** Of the open file, while it is open. */
  get fd(): number {
    return this.#file.fd;
  }

  info(name: string): TensorInfo {
    const info = this.tensors.get(name);
    if (!info) throw new AnsatzError(`${this.path}: has no tensor "${name}"${this.#nearest(name)}`);
    return info;
  }

  /** One tensor in an array of its dtype. */
  async read(name: string): Promise<AnyArray> {
    const info = this.info(name);
    const bytes = new Uint8Array(info.bytes);
    await this.readInto(name, bytes);
    return new ARRAY_OF[info.dtype](bytes.buffer);
  }

  /** One tensor, whose dtype must be the given one. */
  async readAs<D extends SafeDType>(name: string, dtype: D): Promise<ArrayOf<D>> {
    const info = this.info(name);
    if (info.dtype !== dtype) {
      throw new AnsatzError(`${this.path}: tensor "${name}" is ${info.dtype}, expected ${dtype}`);
    }
    return (await this.read(name)) as ArrayOf<D>;
  }

  /** Fills `target` with the tensor's bytes from `start` on (a whole tensor, or rows of it). */
  async readInto(name: string, target: ArrayBufferView, start = 0): Promise<void> {
    const info = this.info(name);
    if (start < 0 || start + target.byteLength > info.bytes) {
      throw new AnsatzError(
        `${this.path}: tensor "${name}" has ${info.bytes} bytes, asked for ${target.byteLength} from ${start}`,
      );
    }
    const bytes = new Uint8Array(target.buffer, target.byteOffset, target.byteLength);
    for (let done = 0; done < bytes.byteLength; ) {
      const want = Math.min(SLICE, bytes.byteLength - done);
      const { bytesRead } = await this.#file.read(bytes, done, want, info.offset + start + done);
      if (bytesRead === 0) throw new AnsatzError(`${this.path}: ends inside tensor "${name}" (truncated while open)`);
      done += bytesRead;
    }
  }

  async close(): Promise<void> {
    await this.#file.close();
  }

  #nearest(name: string): string {
    const tail = name.split('.').at(-1) ?? name;
    const similar = this.names.filter((other) => other.endsWith(tail)).slice(0, 3);
    return similar.length > 0 ? `; it has ${similar.join(', ')}` : ` (it has ${this.tensors.size})`;
  }
}
