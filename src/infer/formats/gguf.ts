/**
 * Writing GGUF (version 3): a header of typed keys, then tensors one after another, each at a multiple of 32 bytes.
 * Everything is little-endian. Tensors are asked for one at a time, so that a file needs memory for its largest only.
 */
import { open } from 'node:fs/promises';
import { AnsatzError } from '../../backend/errors.ts';
import { toBfloats, toHalves } from './floats.ts';
import { BLOCK, Q4_0_BYTES, Q8_0_BYTES, quantiseQ4_0, quantiseQ8_0 } from './ggml-blocks.ts';

const VERSION = 3;
const ALIGNMENT = 32;

/** Formats of tensors: ggml's number, the values and bytes of a block, and its encoder. */
const FORMATS = {
  f32: { id: 0, values: 1, bytes: 4, encode: (x: Float32Array) => bytesOf(x) },
  f16: { id: 1, values: 1, bytes: 2, encode: (x: Float32Array) => bytesOf(toHalves(x)) },
  q4_0: { id: 2, values: BLOCK, bytes: Q4_0_BYTES, encode: quantiseQ4_0 },
  q8_0: { id: 8, values: BLOCK, bytes: Q8_0_BYTES, encode: quantiseQ8_0 },
  bf16: { id: 30, values: 1, bytes: 2, encode: (x: Float32Array) => bytesOf(toBfloats(x)) },
} as const;
export type GgufType = keyof typeof FORMATS;

/** Values that a row must be made of whole blocks of. */
export const blockOf = (type: GgufType): number => FORMATS[type].values;

const bytesOf = (x: ArrayBufferView): Uint8Array => new Uint8Array(x.buffer, x.byteOffset, x.byteLength);

export type GgufValue =
  | { readonly type: 'u32' | 'i32' | 'f32' | 'bool' | 'string'; readonly value: number | boolean | string }
  | { readonly type: 'strings'; readonly value: readonly string[] }
  | { readonly type: 'i32s'; readonly value: ArrayLike<number> };

export interface GgufTensor {
  readonly name: string;
  /** Row-major, as everywhere here; the file lists the dimensions the other way round. */
  readonly shape: readonly number[];
  readonly type: GgufType;
  /** Values, or the bytes of its blocks. */
  data(): Promise<Float32Array | Uint8Array>;
}

/** Bytes that a header is made of, as they come. */
class Bytes {
  private readonly parts: Uint8Array[] = [];

  u32(value: number): this {
    const b = Buffer.alloc(4);
    b.writeUInt32LE(value);
    return this.add(b);
  }

  u64(value: number): this {
    const b = Buffer.alloc(8);
    b.writeBigUInt64LE(BigInt(value));
    return this.add(b);
  }

  string(text: string): this {
    const utf8 = Buffer.from(text, 'utf8');
    return this.u64(utf8.length).add(utf8);
  }

  add(part: Uint8Array): this {
    this.parts.push(part);
    return this;
  }

  value(v: GgufValue): this {
    switch (v.type) {
      case 'u32':
        return this.u32(4).u32(v.value as number);
      case 'i32':
        return this.u32(5).add(bytesOf(Int32Array.of(v.value as number)));
      case 'f32':
        return this.u32(6).add(bytesOf(Float32Array.of(v.value as number)));
      case 'bool':
        return this.u32(7).add(Uint8Array.of(v.value ? 1 : 0));
      case 'string':
        return this.u32(8).string(v.value as string);
      case 'strings':
        this.u32(9).u32(8).u64(v.value.length);
        for (const text of v.value) this.string(text);
        return this;
      case 'i32s':
        return this.u32(9)
          .u32(5)
          .u64(v.value.length)
          .add(bytesOf(Int32Array.from(v.value)));
    }
  }

  padded(): Buffer {
    const all = Buffer.concat(this.parts);
    return Buffer.concat([all, Buffer.alloc(padding(all.length))]);
  }
}

const padding = (length: number): number => (ALIGNMENT - (length % ALIGNMENT)) % ALIGNMENT;

function sizeOf({ name, shape, type }: GgufTensor): number {
  const { values, bytes } = FORMATS[type];
  if (shape.at(-1)! % values)
    throw new AnsatzError(`${name}: rows of ${shape.at(-1)} values are not whole blocks of ${type}`);
  return (shape.reduce((a, b) => a * b, 1) / values) * bytes;
}

function header(metadata: ReadonlyMap<string, GgufValue>, tensors: readonly GgufTensor[]): Buffer {
  const out = new Bytes().add(Buffer.from('GGUF')).u32(VERSION).u64(tensors.length).u64(metadata.size);
  for (const [key, value] of metadata) out.string(key).value(value);
  let offset = 0;
  for (const t of tensors) {
    out.string(t.name).u32(t.shape.length);
    for (const n of [...t.shape].reverse()) out.u64(n);
    out.u32(FORMATS[t.type].id).u64(offset);
    const bytes = sizeOf(t);
    offset += bytes + padding(bytes);
  }
  return out.padded();
}

/** Writes a file whose name is free; see madeWhole(). Returns its bytes. */
export async function writeGguf(
  path: string,
  metadata: ReadonlyMap<string, GgufValue>,
  tensors: readonly GgufTensor[],
): Promise<number> {
  const file = await open(path, 'wx');
  try {
    let position = 0;
    const append = async (bytes: Uint8Array): Promise<void> => {
      for (let done = 0; done < bytes.length; ) {
        const { bytesWritten } = await file.write(bytes, done, Math.min(bytes.length - done, 1 << 28), position);
        done += bytesWritten;
        position += bytesWritten;
      }
    };
    await append(header(metadata, tensors));
    for (const t of tensors) {
      const data = await t.data();
      const bytes = data instanceof Uint8Array ? data : FORMATS[t.type].encode(data);
      if (bytes.length !== sizeOf(t))
        throw new AnsatzError(`${t.name}: ${bytes.length} bytes of data do not fill [${t.shape.join(', ')}]`);
      await append(bytes);
      await append(new Uint8Array(padding(bytes.length)));
    }
    await file.sync();
    return position;
  } finally {
    await file.close();
  }
}
