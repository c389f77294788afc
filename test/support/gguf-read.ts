// A reader of GGUF files written from the format's description, to check the writer with. Keeps the whole file.
import { readFileSync } from 'node:fs';

export interface GgufFile {
  readonly version: number;
  readonly metadata: Map<string, unknown>;
  readonly tensors: { name: string; dims: number[]; type: number; offset: number; bytes: Buffer }[];
  /** Where the first tensor begins. */
  readonly dataStart: number;
  readonly size: number;
}

/** ggml's numbers: values and bytes of a block. */
const TYPES: Record<number, [number, number]> = { 0: [1, 4], 1: [1, 2], 2: [32, 18], 8: [32, 34], 30: [1, 2] };

export function readGguf(path: string): GgufFile {
  const all = readFileSync(path);
  let at = 0;
  const u32 = (): number => all.readUInt32LE((at += 4) - 4);
  const u64 = (): number => Number(all.readBigUInt64LE((at += 8) - 8));
  const text = (): string => {
    const n = u64();
    return all.toString('utf8', at, (at += n));
  };
  const value = (type: number): unknown => {
    switch (type) {
      case 4:
        return u32();
      case 5:
        return all.readInt32LE((at += 4) - 4);
      case 6:
        return all.readFloatLE((at += 4) - 4);
      case 7:
        return all[at++] !== 0;
      case 8:
        return text();
      case 9: {
        const of = u32();
        return Array.from({ length: u64() }, () => value(of));
      }
      default:
        throw new Error(`value type ${type}`);
    }
  };
  if (all.toString('latin1', 0, 4) !== 'GGUF') throw new Error('magic');
  at = 4;
  const version = u32();
  const [count, keys] = [u64(), u64()];
  const metadata = new Map<string, unknown>();
  for (let k = 0; k < keys; k++) {
    const key = text();
    metadata.set(key, value(u32()));
  }
  const infos = Array.from({ length: count }, () => {
    const name = text();
    const dims = Array.from({ length: u32() }, u64);
    return { name, dims, type: u32(), offset: u64() };
  });
  const dataStart = Math.ceil(at / 32) * 32;
  const tensors = infos.map((t) => {
    const [values, bytes] = TYPES[t.type];
    const size = (t.dims.reduce((a, b) => a * b, 1) / values) * bytes;
    return { ...t, bytes: all.subarray(dataStart + t.offset, dataStart + t.offset + size) };
  });
  return { version, metadata, tensors, dataStart, size: all.length };
}

const half = (u: number): number => {
  const [e, m] = [(u >> 10) & 31, u & 1023];
  const size = e === 0 ? m / 2 ** 24 : (1 + m / 1024) * 2 ** (e - 15);
  return u & 0x8000 ? -size : size;
};

/** Values of a tensor's bytes (finite ones). */
export function dequantised(type: number, bytes: Buffer): number[] {
  const out: number[] = [];
  if (type === 0) for (let k = 0; k < bytes.length; k += 4) out.push(bytes.readFloatLE(k));
  else if (type === 1) for (let k = 0; k < bytes.length; k += 2) out.push(half(bytes.readUInt16LE(k)));
  else if (type === 30)
    for (let k = 0; k < bytes.length; k += 2)
      out.push(new Float32Array(Uint32Array.of(bytes.readUInt16LE(k) << 16).buffer)[0]);
  else if (type === 8)
    for (let b = 0; b < bytes.length; b += 34)
      for (let k = 0; k < 32; k++) out.push(half(bytes.readUInt16LE(b)) * bytes.readInt8(b + 2 + k));
  else
    for (let b = 0; b < bytes.length; b += 18)
      for (let k = 0; k < 32; k++) {
        const code = k < 16 ? bytes[b + 2 + k] & 15 : bytes[b + 2 + k - 16] >> 4;
        out.push(half(bytes.readUInt16LE(b)) * (code - 8));
      }
  return out;
}
