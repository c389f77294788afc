/** Which layers look at everything, and what that leaves to compute and to keep. */
export interface WindowPattern {
  readonly window: number;
  /** One layer in `period` is global; 0 for none. */
  readonly period: number;
}

/** Whether a layer looks at all tokens: the last of every `period`, and the last of a model that has fewer. */
export const isGlobal = (layer: number, depth: number, period: number): boolean =>
  period > 0 && ((layer + 1) % period === 0 || (depth < period && layer === depth - 1));

export interface KvSizes extends WindowPattern {
  /** Tokens of the sequence. */
  readonly tokens: number;
  readonly depth: number;
  readonly kvHeads: number;
  readonly headWidth: number;
  /** Bytes of a number; 2 (bf16) when absent. */
  readonly bytes?: number;
}

/**
 * Bytes of keys and values that decoding keeps for one sequence: of L tokens a global layer keeps all, a local one the
 * last min(L, window). `share` is that over what full attention keeps: [a min(L,w) + g L] / [(a + g) L].
 */
export function kvBytes(o: KvSizes): { bytes: number; full: number; share: number } {
  const token = 2 * o.kvHeads * o.headWidth * (o.bytes ?? 2);
  let kept = 0;
  for (let k = 0; k < o.depth; k++) kept += isGlobal(k, o.depth, o.period) ? o.tokens : Math.min(o.tokens, o.window);
  const full = o.depth * o.tokens * token;
  return { bytes: kept * token, full, share: full === 0 ? 1 : (kept * token) / full };
}

/** Pairs (query, key) of a causal row with a window: token t sees min(t + 1, w) keys. */
export const windowPairs = (tokens: number, window: number): number => {
  const w = Math.min(tokens, window);
  return (w * (w + 1)) / 2 + (tokens - w) * w;
};
