// State of sequences in pages (docs/kernels.md, `paged_*`). Pages of keys and values are bytes here as they are on
// other devices, so the formats round as they do there; everything else is float64.
import { bf16Bits, bf16Value } from '../dtype.ts';
import type { RefArray, RefKernel } from './types.ts';

/** Reads and writes one cell of a page. */
interface Cell {
  readonly bytes: number;
  get(view: DataView, at: number): number;
  set(view: DataView, at: number, x: number): void;
}

function f16Bits(x: number): number {
  const sign = x < 0 || Object.is(x, -0) ? 0x8000 : 0;
  const a = Math.abs(x);
  if (Number.isNaN(x)) return 0x7e00;
  if (a < 2 ** -14) return sign;
  const exponent = Math.floor(Math.log2(a));
  const unit = 2 ** (exponent - 10);
  const steps = a / unit;
  const down = Math.floor(steps);
  const half = steps - down;
  const rounded = down + (half > 0.5 || (half === 0.5 && down % 2 === 1) ? 1 : 0);
  return sign | Math.min(0x7bff, (exponent + 15) * 1024 + (rounded - 1024));
}

function f16Value(bits: number): number {
  const magnitude = bits & 0x7fff;
  const value = magnitude < 1024 ? 0 : (1 + (magnitude & 1023) / 1024) * 2 ** ((magnitude >> 10) - 15);
  return bits & 0x8000 ? -value : value;
}

const roundEven = (x: number): number => {
  const down = Math.floor(x);
  const half = x - down;
  return half > 0.5 || (half === 0.5 && down % 2 !== 0) ? down + 1 : down;
};

const cells: Cell[] = [
  { bytes: 4, get: (v, at) => v.getFloat32(at, true), set: (v, at, x) => v.setFloat32(at, x, true) },
  {
    bytes: 2,
    get: (v, at) => bf16Value(v.getUint16(at, true)),
    set: (v, at, x) => v.setUint16(at, bf16Bits(x), true),
  },
  {
    bytes: 1,
    get: (v, at) => v.getInt8(at),
    set: (v, at, x) => v.setInt8(at, Math.min(127, Math.max(-127, roundEven(x)))),
  },
  {
    bytes: 2,
    get: (v, at) => f16Value(v.getUint16(at, true)),
    set: (v, at, x) => v.setUint16(at, f16Bits(Math.fround(x)), true),
  },
];

/** One head's part of a page, as numbers. */
export class PageHead {
  private readonly view: DataView;
  private readonly cell: Cell;
  private readonly scaled: boolean;
  private readonly D: number;
  private readonly Dp: number;
  private readonly page: number;

  constructor(pool: Uint8Array, format: number, heads: number, D: number, page: number, at: number, head: number) {
    this.cell = cells[format];
    this.scaled = format === 2;
    [this.D, this.Dp, this.page] = [D, Math.ceil(D / 16) * 16, page];
    const bytes = Math.ceil(((D + this.Dp) * page * this.cell.bytes + (this.scaled ? 8 * page : 0)) / 64) * 64;
    this.view = new DataView(pool.buffer, pool.byteOffset + (at * heads + head) * bytes, bytes);
  }

  private keyAt = (slot: number, d: number): number => (d * this.page + slot) * this.cell.bytes;
  private valueAt = (slot: number, d: number): number => (this.D * this.page + slot * this.Dp + d) * this.cell.bytes;
  private scaleAt = (slot: number, values: boolean): number =>
    (this.D + this.Dp) * this.page * this.cell.bytes + ((values ? this.page : 0) + slot) * 4;
  private scale(slot: number, values: boolean): number {
    return this.scaled ? this.view.getFloat32(this.scaleAt(slot, values), true) : 1;
  }

  key = (slot: number, d: number): number => this.cell.get(this.view, this.keyAt(slot, d)) * this.scale(slot, false);
  value = (slot: number, d: number): number => this.cell.get(this.view, this.valueAt(slot, d)) * this.scale(slot, true);

  put(slot: number, x: RefArray, at: number, values: boolean): void {
    let factor = 1;
    if (this.scaled) {
      let top = 0;
      for (let d = 0; d < this.D; d++) top = Math.max(top, Math.abs(Math.fround(x[at + d])));
      this.view.setFloat32(this.scaleAt(slot, values), top / 127, true);
      factor = top > 0 ? Math.fround(127 / top) : 0;
    }
    for (let d = 0; d < this.D; d++) {
      const cell = this.scaled ? Math.fround(x[at + d]) * factor : x[at + d];
      this.cell.set(this.view, values ? this.valueAt(slot, d) : this.keyAt(slot, d), cell);
    }
  }
}

export const paged: Record<string, RefKernel> = {
  paged_append({ p: [pool, k, v, table, sequence, position], i }) {
    const [R, heads, D, page, maxPages, format, tokK, tokV] = i;
    for (let r = 0; r < R; r++) {
      if (sequence![r] < 0) continue;
      const n = table![sequence![r] * maxPages + Math.floor(position![r] / page)];
      for (let head = 0; head < heads; head++) {
        const h = new PageHead(pool as Uint8Array, format, heads, D, page, n, head);
        h.put(position![r] % page, k!, r * tokK + head * D, false);
        h.put(position![r] % page, v!, r * tokV + head * D, true);
      }
    }
  },

  paged_attention({ p: [out, q, pool, bias, table, sequence, position, reach, lse], i, f: [scale] }) {
    const [R, H, Hkv, D, page, maxPages, format, tokQ, tokOut, window, biasLength, block, back] = i;
    for (let r = 0; r < R; r++) {
      for (let head = 0; head < H; head++) {
        const to = r * tokOut + head * D;
        out!.fill(0, to, to + D);
        if (lse) lse[r * H + head] = -Infinity;
        if (sequence![r] < 0) continue;
        const first = block ? (Math.floor(position![r] / block) - back) * block : 0;
        const low = block ? first : window ? Math.max(0, position![r] - window + 1) : 0;
        const high = block ? Math.min(reach![r], first + block - 1) : reach![r];
        if (low < 0) continue;
        const kvHead = Math.floor(head / (H / Hkv));
        const at = (j: number): PageHead => {
          const n = table![sequence![r] * maxPages + Math.floor(j / page)];
          return new PageHead(pool as Uint8Array, format, Hkv, D, page, n, kvHead);
        };
        const scores: number[] = [];
        for (let j = low; j <= high; j++) {
          const h = at(j);
          let dot = 0;
          for (let d = 0; d < D; d++) dot += q![r * tokQ + head * D + d] * h.key(j % page, d);
          const distance = biasLength - 1 - position![r] + j;
          const b = bias ? bias[head * biasLength + Math.min(biasLength - 1, Math.max(0, distance))] : 0;
          scores.push(scale * dot + b);
        }
        const top = Math.max(...scores);
        const weights = scores.map((s) => Math.exp(s - top));
        const total = weights.reduce((a, b) => a + b, 0);
        if (lse) lse[r * H + head] = top + Math.log(total);
        for (let j = low; j <= high; j++) {
          const h = at(j);
          for (let d = 0; d < D; d++) out![to + d] += (weights[j - low] / total) * h.value(j % page, d);
        }
      }
    }
  },

  merge_attention({ p: [out, a, b, lseA, lseB], i: [n, D] }) {
    for (let k = 0; k < n; k++) {
      const top = Math.max(lseA![k], lseB![k]);
      const [x, y] = [lseA!, lseB!].map((lse) => (top === -Infinity ? 0 : Math.exp(lse[k] - top)));
      for (let d = 0; d < D; d++)
        out![k * D + d] = top === -Infinity ? 0 : (x * a![k * D + d] + y * b![k * D + d]) / (x + y);
    }
  },

  paged_write({ p: [pool, x, table, sequence, position], i: [R, width, page, maxPages] }) {
    for (let r = 0; r < R; r++) {
      if (sequence![r] < 0) continue;
      const n = table![sequence![r] * maxPages + Math.floor(position![r] / page)];
      for (let k = 0; k < width; k++) pool![(n * page + (position![r] % page)) * width + k] = x![r * width + k];
    }
  },

  paged_choose({ p: [out, x, pool, table, sequence, position, reach], i: [R, width, page, maxPages] }) {
    for (let r = 0; r < R; r++) {
      const t = position![r];
      const has = sequence![r] >= 0 && t <= reach![r];
      const at = has ? table![sequence![r] * maxPages + Math.floor(t / page)] * page + (t % page) : 0;
      for (let k = 0; k < width; k++) out![r * width + k] = has ? pool![at * width + k] : x![r * width + k];
    }
  },

  paged_read({ p: [out, pool, table, sequence, position], i: [R, width, page, maxPages, back, count] }) {
    for (let r = 0; r < R; r++)
      for (let j = 0; j < count; j++) {
        const at = position![r] - back + j;
        const n = at < 0 || sequence![r] < 0 ? -1 : table![sequence![r] * maxPages + Math.floor(at / page)];
        const to = (r * count + j) * width;
        for (let k = 0; k < width; k++) out![to + k] = n < 0 ? 0 : pool![(n * page + (at % page)) * width + k];
      }
  },
};
