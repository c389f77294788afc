// The header of a safetensors file: planning one for writing, and parsing one that anybody may have made. A parsed
// header is believed only after every size and offset in it agrees with the length of the file.
import type { FileHandle } from 'node:fs/promises';
import { AnsatzError } from '../backend/errors.ts';

/** Element types and the arrays that hold them; the types JavaScript lacks are held as raw bits (BF16, F16 as u16). */
export const ARRAY_OF = {
  F64: Float64Array,
  I64: BigInt64Array,
  U64: BigUint64Array,
  F32: Float32Array,
  I32: Int32Array,
  U32: Uint32Array,
  F16: Uint16Array,
  BF16: Uint16Array,
  I16: Int16Array,
  U16: Uint16Array,
  I8: Int8Array,
  U8: Uint8Array,
  BOOL: Uint8Array,
  F8_E4M3: Uint8Array,
  F8_E5M2: Uint8Array,
} as const;

export type SafeDType = keyof typeof ARRAY_OF;
export type ArrayOf<D extends SafeDType> = InstanceType<(typeof ARRAY_OF)[D]>;
export type AnyArray = ArrayOf<SafeDType>;

export interface TensorInfo {
  dtype: SafeDType;
  shape: number[];
  /** Where the tensor's bytes start in the file (not in the data section), ready for a positional read or mmap. */
  offset: number;
  bytes: number;
}

/** A tensor to be written. `data` is called when its turn comes and its result is dropped before the next one's. */
export interface TensorSource {
  name: string;
  dtype: SafeDType;
  shape: readonly number[];
  data: () => ArrayBufferView | Promise<ArrayBufferView>;
}

export function elementBytes(dtype: SafeDType): number {
  return ARRAY_OF[dtype].BYTES_PER_ELEMENT;
}

export interface Layout {
  tensors: Map<string, TensorInfo>;
  metadata: Record<string, string>;
}

type Span = [begin: number, end: number];

// The reference implementation's limit; it also bounds the memory that a hostile or damaged file can make us allocate.
const MAX_HEADER_BYTES = 100_000_000;
const METADATA = '__metadata__';

/** Where tensors start, so that a mapped file can be used as it is: on lines of the cache, large ones on pages. */
const [LINE, PAGE] = [64, 4096];

/**
 * Order and offsets of the tensors of a new file. Those that are whole pages come first, then those that are whole lines:
 * the format allows no holes, and so all of these start on such a multiple (weights in blocks are whole lines always).
 * Otherwise wide elements first, then by name: the reference implementation's order, which puts the rest on multiples of
 * their element size.
 */
export function planLayout(path: string, tensors: readonly TensorSource[]): { order: TensorSource[]; spans: Span[] } {
  const rank = ({ shape, dtype }: TensorSource): number => {
    const bytes = sizeOf(shape, dtype) ?? 0;
    return bytes % LINE ? 2 : bytes % PAGE ? 1 : 0;
  };
  const order = [...tensors].sort(
    (a, b) =>
      rank(a) - rank(b) ||
      elementBytes(b.dtype) - elementBytes(a.dtype) ||
      (a.name < b.name ? -1 : a.name > b.name ? 1 : 0),
  );
  const seen = new Set<string>();
  const spans: Span[] = [];
  let end = 0;
  for (const { name, dtype, shape } of order) {
    if (name === METADATA || seen.has(name)) throw new AnsatzError(`${path}: tensor name "${name}" is used twice`);
    seen.add(name);
    const bytes = sizeOf(shape, dtype);
    if (bytes === undefined) throw new AnsatzError(`${path}: tensor "${name}" has an impossible shape [${shape}]`);
    spans.push([end, end + bytes]);
    end += bytes;
  }
  return { order, spans };
}

export function headerOf(order: readonly TensorSource[], spans: readonly Span[], metadata: Record<string, string>) {
  const entries: [string, unknown][] = Object.keys(metadata).length > 0 ? [[METADATA, metadata]] : [];
  for (let k = 0; k < order.length; k++) {
    entries.push([order[k].name, { dtype: order[k].dtype, shape: order[k].shape, data_offsets: spans[k] }]);
  }
  // Assembled by hand, because an object would move names that look like integers to the front.
  const json = `{${entries.map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join(',')}}`;
  const text = Buffer.from(json, 'utf8');
  // The data starts on a page in large files: what the padding takes does not count there.
  const total = spans.length > 0 ? spans[spans.length - 1][1] : 0;
  const multiple = total > 256 * PAGE ? PAGE : LINE;
  const padded = Math.ceil((8 + text.byteLength) / multiple) * multiple - 8;
  const header = Buffer.alloc(8 + padded, ' ');
  header.writeBigUInt64LE(BigInt(padded), 0);
  text.copy(header, 8);
  return header;
}

export async function parseHeader(path: string, file: FileHandle): Promise<Layout> {
  const bad = (why: string) => new AnsatzError(`${path}: not a valid safetensors file: ${why}`);
  const stat = await file.stat();
  if (!stat.isFile()) throw bad('it is not a regular file');
  const prefix = Buffer.alloc(8);
  if (stat.size < 8 || (await file.read(prefix, 0, 8, 0)).bytesRead < 8) throw bad(`it has only ${stat.size} bytes`);
  const declared = prefix.readBigUInt64LE(0);
  if (declared > BigInt(MAX_HEADER_BYTES)) throw bad(`it declares a header of ${declared} bytes`);
  const length = Number(declared);
  if (8 + length > stat.size) throw bad(`it declares a header of ${length} bytes but has ${stat.size} in all`);

  const bytes = Buffer.alloc(length);
  for (let done = 0; done < length; ) {
    const { bytesRead } = await file.read(bytes, done, length - done, 8 + done);
    if (bytesRead === 0) throw bad('it ends inside its header');
    done += bytesRead;
  }
  let text: string;
  let parsed: unknown;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    parsed = JSON.parse(text);
  } catch {
    throw bad('its header is not JSON');
  }
  if (!text.startsWith('{') || !isRecord(parsed)) throw bad('its header is not a JSON object');
  const twice = duplicateKey(text);
  if (twice !== undefined) throw bad(`its header has the name "${twice}" twice`);

  const dataStart = 8 + length;
  const dataBytes = stat.size - dataStart;
  const tensors = new Map<string, TensorInfo>();
  let metadata: Record<string, string> = {};
  const spans: { name: string; begin: number; end: number }[] = [];
  for (const [name, entry] of Object.entries(parsed)) {
    if (name === METADATA) {
      if (!isRecord(entry) || Object.values(entry).some((value) => typeof value !== 'string')) {
        throw bad('its __metadata__ is not a map of strings');
      }
      metadata = entry as Record<string, string>;
      continue;
    }
    const { info, begin, end } = parseEntry(name, entry, dataStart, bad);
    if (end > dataBytes) throw bad(`tensor "${name}" ends at byte ${end} of ${dataBytes} (truncated?)`);
    tensors.set(name, info);
    spans.push({ name, begin, end });
  }
  spans.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let reached = 0;
  for (const { name, begin, end } of spans) {
    if (begin < reached) throw bad(`tensor "${name}" overlaps another one`);
    if (begin > reached) throw bad(`there is a hole of ${begin - reached} bytes before tensor "${name}"`);
    reached = end;
  }
  if (reached !== dataBytes) throw bad(`it has ${dataBytes - reached} bytes after its last tensor`);
  return { tensors, metadata };
}

function parseEntry(name: string, entry: unknown, dataStart: number, bad: (why: string) => AnsatzError) {
  if (!isRecord(entry)) throw bad(`the entry of "${name}" is not an object`);
  const { dtype, shape, data_offsets: offsets } = entry;
  if (typeof dtype !== 'string' || !Object.hasOwn(ARRAY_OF, dtype)) {
    throw bad(`tensor "${name}" has the unknown dtype ${JSON.stringify(dtype)}`);
  }
  const bytes = Array.isArray(shape) ? sizeOf(shape, dtype as SafeDType) : undefined;
  if (bytes === undefined) throw bad(`tensor "${name}" has an impossible shape ${JSON.stringify(shape)}`);
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every((o) => Number.isSafeInteger(o) && o >= 0)) {
    throw bad(`tensor "${name}" has impossible offsets ${JSON.stringify(offsets)}`);
  }
  const [begin, end] = offsets as Span;
  if (end - begin !== bytes) {
    throw bad(`tensor "${name}" (${dtype} [${shape}]) needs ${bytes} bytes but its offsets hold ${end - begin}`);
  }
  const info: TensorInfo = { dtype: dtype as SafeDType, shape: shape as number[], offset: dataStart + begin, bytes };
  return { info, begin, end };
}

/** Bytes of a tensor, or undefined when the shape is not one or its size is beyond exact integers. */
function sizeOf(shape: readonly unknown[], dtype: SafeDType): number | undefined {
  let bytes = elementBytes(dtype);
  let empty = false;
  for (const dim of shape) {
    if (typeof dim !== 'number' || !Number.isSafeInteger(dim) || dim < 0) return undefined;
    if (dim === 0) empty = true;
    else if (!Number.isSafeInteger((bytes *= dim))) return undefined;
  }
  return empty ? 0 : bytes;
}

/** JSON.parse keeps the last of two equal keys without a word; this finds the first repeated one, at any depth. */
function duplicateKey(json: string): string | undefined {
  const scopes: Set<string>[] = [];
  const token = /"[^"\\]*(?:\\.[^"\\]*)*"(\s*:)?|[{}]/gs;
  for (let match = token.exec(json); match; match = token.exec(json)) {
    const text = match[0];
    if (text === '{') scopes.push(new Set());
    else if (text === '}') scopes.pop();
    else if (match[1] !== undefined) {
      const key = JSON.parse(text.slice(0, text.length - match[1].length)) as string;
      const scope = scopes[scopes.length - 1];
      if (scope.has(key)) return key;
      scope.add(key);
    }
  }
  return undefined;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
