const ROUNDS = 6;

/** Finaliser of MurmurHash3: every input bit reaches every output bit. */
function mix32(x: number): number {
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/**
 * A seeded permutation of 0..size-1, computed element by element: a Feistel network on the smallest even number of
 * bits that holds `size`, repeated while the result is outside ("cycle walking", Black and Rogaway 2002). The order of
 * a whole epoch needs no memory, and any position of it can be resumed from its number.
 */
export class Permutation {
  readonly size: number;
  readonly #halfBits: number;
  readonly #mask: number;
  readonly #keys: Uint32Array;

  constructor(size: number, seed: number, stream: number, epoch: number) {
    if (!Number.isSafeInteger(size) || size < 0 || size > 2 ** 32) throw new RangeError(`cannot permute ${size} items`);
    this.size = size;
    this.#halfBits = Math.max(1, Math.ceil(Math.ceil(Math.log2(Math.max(size, 2))) / 2));
    this.#mask = 2 ** this.#halfBits - 1;
    this.#keys = new Uint32Array(ROUNDS);
    // Each number is absorbed after mixing, so that (seed 1, epoch 2) and (seed 2, epoch 1) are unrelated.
    let key = 0x9e3779b9;
    for (const part of [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0, stream, epoch])
      key = mix32(key ^ mix32(part + 0x7f4a7c15));
    for (let round = 0; round < ROUNDS; round++) this.#keys[round] = mix32(key + Math.imul(round + 1, 0x9e3779b9));
  }

  at(index: number): number {
    const half = 2 ** this.#halfBits;
    const mask = this.#mask;
    let value = index;
    do {
      let left = Math.floor(value / half);
      let right = value % half;
      for (let round = 0; round < ROUNDS; round++) {
        const next = left ^ (mix32(right ^ this.#keys[round]) & mask);
        left = right;
        right = next;
      }
      value = left * half + right;
    } while (value >= this.size);
    return value;
  }
}
