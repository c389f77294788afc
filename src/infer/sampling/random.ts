/** Choosing the next token from logits. */

export interface SamplingOptions {
  /** 0 takes the most likely token. */
  temperature?: number;
  /** Keep the k most likely; 0 keeps all. */
  topK?: number;
  /** Keep the smallest set whose probability reaches p (Holtzman et al. 2020). */
  topP?: number;
  seed?: number;
}

/** A small counter-based generator: the n-th number of a seed is always the same (splitmix32). */
export function randomStream(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return ((z ^ (z >>> 15)) >>> 0) / 2 ** 32;
  };
}

/** Picks a token id from logits; `uniform` is a number in [0, 1). Ties go to the lower id. */
export function sample(logits: Float32Array, options: SamplingOptions, uniform: number): number {
  const { temperature = 1, topK = 0, topP = 1 } = options;
  let best = 0;
  for (let k = 1; k < logits.length; k++) if (logits[k] > logits[best]) best = k;
  if (temperature <= 0) return best;

  const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
  const kept = topK > 0 ? order.slice(0, topK) : order;
  const weights = kept.map((id) => Math.exp((logits[id] - logits[best]) / temperature));
  const total = weights.reduce((a, b) => a + b, 0);
  let count = kept.length;
  if (topP < 1) {
    let mass = 0;
    for (count = 0; count < kept.length && mass < topP * total; count++) mass += weights[count];
  }
  let left = uniform * weights.slice(0, count).reduce((a, b) => a + b, 0);
  for (let k = 0; k < count; k++) {
    left -= weights[k];
    if (left < 0) return kept[k];
  }
  return kept[count - 1];
}
