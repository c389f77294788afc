/** The n-th number of a seed, of 32 bits: a small counter-based generator (splitmix32). */
export function randomAt(seed: number, n: number): number {
  const state = (seed + Math.imul(n + 1, 0x9e3779b9)) >>> 0;
  let z = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
  z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
  return (z ^ (z >>> 15)) >>> 0;
}

/** All of them in turn, in [0, 1). */
export function randomStream(seed: number): () => number {
  let n = 0;
  return () => randomAt(seed >>> 0, n++) / 2 ** 32;
}
