/**
 * A quantised run's weights for files of other kinds: as the values that they stand for, or as the codes that they are.
 * ggml's Q8_0 holds both of our types exactly: groups of 32 inputs share a scale in all three, codes of q8 and levels of q4
 * are whole numbers from -127 to 127, and a bf16 scale is a half unless it is very small.
 */
import { AnsatzError } from '../../backend/errors.ts';
import { openDevice } from '../../backend/index.ts';
import { declared, type Module } from '../../nn/index.ts';
import { type BlockType, dequantise, noGrad, permute, scope, Tensor } from '../../tensor/index.ts';
import { storedBlocks, type TensorFile } from '../../train/stored.ts';
import { type Block, elementsOf, type FileTensor, rowOf } from './blocks.ts';
import { HALF_MAX, halfBits } from './floats.ts';
import { BLOCK, Q8_0_BYTES } from './ggml-blocks.ts';

/** Values of q4's codes in units of the scale (docs/quantised.md). */
const LEVELS = Int8Array.of(-127, -98, -77, -61, -47, -34, -22, -11, 0, 11, 23, 35, 49, 64, 82, 105);
const [STRIP, TILE] = [16, 64];
const TILE_BYTES = { q8: 64 + 2 * 512, q4: 64 + 2 * 256 } as const;

type Codes = keyof typeof TILE_BYTES;
type Quantised = NonNullable<ReturnType<typeof storedBlocks>>;

export interface QuantisedFile extends TensorFile {
  /** The types that quantised parameters have. */
  readonly types: ReadonlySet<BlockType>;
  /** How a parameter is stored, if in blocks. */
  blocks(path: string): Quantised | undefined;
  bytesOf(q: Quantised): Promise<Uint8Array>;
}

/** A file in which quantised parameters read as f32 under their own names; null when none is quantised. */
export function quantisedFile(file: TensorFile, model: Module): QuantisedFile | null {
  const names = new Set(file.names);
  const params = declared(model).map(({ path, spec }) => ({ path, shape: spec.shape }));
  const quantised = new Map(
    params.flatMap(({ path, shape }) => {
      const q = storedBlocks(names, path, shape);
      return q ? [[path, { ...q, own: shape }] as const] : [];
    }),
  );
  if (quantised.size === 0) return null;
  // Pieces of a parameter are asked for one after another: the last one and its bytes stay.
  let lastBytes: { readonly name: string; readonly bytes: Uint8Array } | undefined;
  let lastValues: { readonly path: string; readonly values: Float32Array } | undefined;
  const bytesOf = async ({ name }: Quantised): Promise<Uint8Array> => {
    if (lastBytes?.name !== name) lastBytes = { name, bytes: (await file.read(name)) as Uint8Array };
    return lastBytes.bytes;
  };
  const valuesOf = async (path: string): Promise<Float32Array> => {
    if (lastValues?.path === path) return lastValues.values;
    const q = quantised.get(path)!;
    const bytes = await bytesOf(q);
    const values = noGrad(() =>
      scope(() => {
        const t = Tensor.empty(openDevice('cpu'), q.type, q.shape);
        t.writeBits(bytes);
        const plain = dequantise(t);
        return (q.turned === 'columns' ? permute(plain, [0, 2, 1]) : plain).dataSync() as Float32Array;
      }),
    );
    lastValues = { path, values };
    return values;
  };
  return {
    path: file.path,
    names: params.map((p) => p.path),
    types: new Set([...quantised.values()].map((q) => q.type)),
    blocks: (path) => quantised.get(path),
    bytesOf,
    info: (name) => {
      const q = quantised.get(name);
      if (!q) return file.info(name);
      return { dtype: 'F32', shape: [...q.own], offset: 0, bytes: 4 * elementsOf(q.own) };
    },
    read: async (name) => (quantised.has(name) ? (await valuesOf(name)).slice() : file.read(name)),
    readInto: async (name, target, start = 0) => {
      if (!quantised.has(name)) return file.readInto(name, target, start);
      const { buffer, byteOffset } = await valuesOf(name);
      const into = new Uint8Array(target.buffer, target.byteOffset, target.byteLength);
      into.set(new Uint8Array(buffer, byteOffset + start, target.byteLength));
    },
  };
}

const codesIn = (type: BlockType): type is Codes => type in TILE_BYTES;

/** Whether a tensor of the file has only rows of quantised parameters of ours, so that its codes can be taken over. */
export const hasCodes = (t: FileTensor, file: QuantisedFile): boolean =>
  t.shape[t.shape.length - 1] % BLOCK === 0 &&
  t.blocks.length > 0 &&
  t.blocks.every((b) => {
    const q = file.blocks(b.ours);
    return q !== undefined && codesIn(q.type) && (q.turned === 'columns') === (b.transposed ?? false);
  });

/** A tensor in Q8_0 with the codes that we have. */
export async function codesAsQ8(t: FileTensor, file: QuantisedFile): Promise<Uint8Array> {
  const groups = t.shape[t.shape.length - 1] / BLOCK;
  const out = new Uint8Array((elementsOf(t.shape) / BLOCK) * Q8_0_BYTES);
  for (const b of t.blocks) {
    const q = file.blocks(b.ours)!;
    const [bytes, [N, K], { scale = 1 }] = [await file.bytesOf(q), q.shape.slice(-2), b];
    if (K !== b.cols) throw new Error(`${t.name}: rows of ${b.cols} values in a matrix of ${K} inputs`);
    const tiles = Math.ceil(K / TILE);
    const size = TILE_BYTES[q.type as Codes];
    const matrix = Math.ceil(N / STRIP) * tiles * size;
    const first = b.from / K;
    for (let r = 0; r < b.rows; r++) {
      const row = first + ownRow(b, r);
      const n = row % N;
      const strip = Math.floor(row / N) * matrix + Math.floor(n / STRIP) * tiles * size;
      for (let g = 0; g < groups; g++) {
        const tile = strip + Math.floor((g * BLOCK) / TILE) * size;
        const at = ((b.to / b.cols + r) * groups + g) * Q8_0_BYTES;
        putGroup(out, at, bytes, tile, q.type as Codes, g % 2, n % STRIP, scale, t.name);
      }
    }
  }
  return out;
}

const ownRow = (b: Block, r: number): number => (b.pairs ? rowOf(r, b.pairs) : r);

const word = new DataView(new ArrayBuffer(4));

/** One group of 32 of row r in a tile, as `f16 d; i8 q[32]`. */
function putGroup(
  out: Uint8Array,
  at: number,
  bytes: Uint8Array,
  tile: number,
  type: Codes,
  group: number,
  r: number,
  factor: number,
  name: string,
): void {
  const scaleAt = tile + 2 * (group * STRIP + r);
  word.setUint16(2, bytes[scaleAt] | (bytes[scaleAt + 1] << 8), true);
  const scale = Math.fround(word.getFloat32(0, true) * factor);
  if (Math.abs(scale) > HALF_MAX)
    throw new AnsatzError(`${name} has weights too large for the scales of q8_0`, { hint: 'export with --type bf16' });
  const half = halfBits(scale);
  out[at] = half & 0xff;
  out[at + 1] = half >>> 8;
  for (let k = 0; k < BLOCK; k++) {
    const lane = 4 * r + (k % 4);
    if (type === 'q8') out[at + 2 + k] = (bytes[tile + 64 + 512 * group + 64 * (k >> 2) + lane] - 128) & 0xff;
    else {
      const both = bytes[tile + 64 + 256 * group + 64 * ((k % 16) >> 2) + lane];
      out[at + 2 + k] = LEVELS[k < 16 ? both & 15 : both >> 4] & 0xff;
    }
  }
}

/** What a reader of the file should know. */
export function quantisedNotes(file: QuantisedFile, type: string): string[] {
  const four = file.types.has('q4');
  if (type === 'q8_0')
    return four ? ['4-bit weights are q8_0 in the file, which holds their uneven levels exactly; q4_0 would not'] : [];
  if (type === 'q4_0')
    return [
      four
        ? 'the 4-bit weights were rounded again, to the even steps of q4_0, which costs accuracy: --type q8_0 keeps them'
        : 'weights of 8 bits were rounded to 4',
    ];
  return [`quantised weights are written as ${type} values: the file is larger than the run, and no more exact`];
}
