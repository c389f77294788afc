// Counter-based random numbers: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3.
import type { RefArray, RefKernel } from './types.ts';

/** High 32 bits of the 64-bit product of two unsigned 32-bit numbers, from 16-bit halves. */
function mulHigh(a: number, b: number): number {
  const [aLow, aHigh, bLow, bHigh] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  const cross = aLow * bHigh + (middle & 0xffff);
  return (aHigh * bHigh + (middle >>> 16) + (cross >>> 16)) >>> 0;
}

/** Philox4x32-10: four random words for a 128-bit counter and a 64-bit key. */
export function philox(counter: readonly number[], key: readonly number[]): [number, number, number, number] {
  let [c0, c1, c2, c3] = counter.map((word) => word >>> 0);
  let [k0, k1] = key.map((word) => word >>> 0);
  for (let round = 0; round < 10; round++) {
    const [high0, low0] = [mulHigh(0xd2511f53, c0), Math.imul(0xd2511f53, c0)];
    const [high1, low1] = [mulHigh(0xcd9e8d57, c2), Math.imul(0xcd9e8d57, c2)];
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1 >>> 0, (high0 ^ c3 ^ k1) >>> 0, low0 >>> 0];
    k0 = (k0 + 0x9e3779b9) >>> 0; // the golden ratio and sqrt(3) - 1, as the paper chose them
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** The four words that elements 4 block .. 4 block + 3 of a stream are made of. state = seed lo, hi, step lo, hi. */
export function randomWords(state: RefArray, stream: number, block: number): [number, number, number, number] {
  const [seedLow, seedHigh, stepLow, stepHigh] = state;
  const blockHigh = Math.floor(block / 2 ** 32);
  return philox([block % 2 ** 32, blockHigh, stream, stepLow], [seedLow, seedHigh ^ stepHigh]);
}

/** A word as a number in [0, 1): its upper 24 bits, which float32 holds exactly. */
export const unit = (word: number): number => (word >>> 8) * 2 ** -24;

export const random: Record<string, RefKernel> = {
  uniform({ p, i: [n, stream], f: [lo, hi] }) {
    const [out, state] = [p[0]!, p[1]!];
    for (let k = 0; k < n; k++) {
      const u = unit(randomWords(state, stream, Math.floor(k / 4))[k % 4]);
      out[k] = lo + (hi - lo) * u;
    }
  },

  normal({ p, i: [n, stream], f: [mean, std] }) {
    const [out, state] = [p[0]!, p[1]!];
    for (let k = 0; k < n; k++) {
      const words = randomWords(state, stream, Math.floor(k / 4));
      const pair = k % 4 < 2 ? 0 : 2;
      const radius = Math.sqrt(-2 * Math.log(1 - unit(words[pair])));
      const angle = 2 * Math.PI * unit(words[pair + 1]);
      out[k] = mean + std * radius * (k % 2 === 0 ? Math.cos(angle) : Math.sin(angle));
    }
  },

  dropout({ p, i: [n, stream], f: [rate] }) {
    const [out, x, state] = [p[0]!, p[1]!, p[2]!];
    for (let k = 0; k < n; k++) {
      const u = unit(randomWords(state, stream, Math.floor(k / 4))[k % 4]);
      out[k] = u >= rate ? x[k] / (1 - rate) : 0;
    }
  },
};
