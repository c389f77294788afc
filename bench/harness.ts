/**
 * Side-by-side measurement. Ours and the peer's take turns in one run, so that a machine that slows down slows both;
 * the ratio is the median of the ratios of neighbouring turns.
 */
export interface Row {
  readonly name: string;
  /** What is compared, in `unit`; higher is better unless `lowerIsBetter`. */
  readonly ours: number;
  readonly peer: number | null;
  readonly peerName?: string;
  /** ours / peer (peer / ours when lower is better): above 1 we are ahead. */
  readonly ratio: number | null;
  readonly unit: string;
  readonly [extra: string]: unknown;
}

export type Bench = () => AsyncIterable<Row>;

export const median = (values: readonly number[]): number => {
  const sorted = [...values].sort((a, b) => a - b);
  const mid = sorted.length >> 1;
  return sorted.length % 2 ? sorted[mid] : (sorted[mid - 1] + sorted[mid]) / 2;
};

/** Alternates the two and compares their rates. Each function measures once and returns a rate (higher is better). */
export async function interleave(
  ours: () => Promise<number> | number,
  peer: (() => Promise<number>) | null,
  rounds: number,
  warm = true,
): Promise<{ ours: number; peer: number | null; ratio: number | null; spread: number }> {
  const a: number[] = [];
  const b: number[] = [];
  if (warm) await ours();
  if (warm && peer) await peer();
  for (let k = 0; k < rounds; k++) {
    a.push(await ours());
    if (peer) b.push(await peer());
  }
  const ratios = b.map((p, k) => a[k] / p);
  const spread = (Math.max(...a) - Math.min(...a)) / median(a);
  return { ours: median(a), peer: peer ? median(b) : null, ratio: peer ? median(ratios) : null, spread };
}
