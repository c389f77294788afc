/**
 * Which tokens of a text are noise: counts, compositions and masks of span corruption (Raffel et al. 2020; Tay et al.
 * 2022). Counts follow the released code: float32 products, rounded half to even.
 */

/** Where random choices come from. */
export interface Draw {
  /** A whole number in [0, n). */
  below(n: number): number;
}

/** Rounds a float32 to the nearest whole number, halves to the even one. Math.round rounds them up. */
export function rint32(x: number): number {
  const single = Math.fround(x);
  const low = Math.floor(single);
  const rest = single - low;
  if (rest !== 0.5) return rest < 0.5 ? low : low + 1;
  return low % 2 === 0 ? low : low + 1;
}

export interface Counts {
  /** Tokens that are replaced. */
  readonly noise: number;
  /** Runs that they form. */
  readonly spans: number;
}

/** Noise tokens and spans of a text of `length` tokens, for a noise density and a mean length of spans. */
export function counts(length: number, density: number, mean: number): Counts {
  const n = Math.max(length, 2);
  const f = Math.fround;
  const noise = Math.min(Math.max(rint32(f(n) * f(density)), 1), n - 1);
  const wanted = Math.max(rint32(f(noise) / f(mean)), 1);
  return { noise, spans: Math.min(wanted, noise, n - noise) };
}

/** n as a sum of k positive parts, every such sum equally likely: k-1 cuts among n-1 places (Floyd's sampling). */
export function compose(n: number, k: number, draw: Draw): number[] {
  const cut = new Uint8Array(n);
  for (let place = n - k + 1; place < n; place++) {
    const other = 1 + draw.below(place);
    cut[cut[other] ? place : other] = 1;
  }
  const parts: number[] = [];
  let start = 0;
  for (let place = 1; place < n; place++)
    if (cut[place]) {
      parts.push(place - start);
      start = place;
    }
  parts.push(n - start);
  return parts;
}

/**
 * 1 for noise, 0 for clean. Both ends may be either, and the two ends are alike: S spans between S+1 gaps, the outer two
 * of which may be empty. Lengths are those of `t5Mask`.
 */
export function openMask(length: number, density: number, mean: number, draw: Draw): Uint8Array {
  const { noise, spans } = counts(length, density, mean);
  const gaps = compose(length - noise + 2, spans + 1, draw);
  gaps[0]--;
  gaps[spans]--;
  const lengths = compose(noise, spans, draw);
  const mask = new Uint8Array(length);
  let at = 0;
  for (let k = 0; k < spans; k++) {
    at += gaps[k];
    mask.fill(1, at, at + lengths[k]);
    at += lengths[k];
  }
  return mask;
}

/** T5's own mask: always begins clean and ends with noise, so a single span is always the end of the text. */
export function t5Mask(length: number, density: number, mean: number, draw: Draw): Uint8Array {
  const { noise, spans } = counts(length, density, mean);
  const clean = compose(length - noise, spans, draw);
  const lengths = compose(noise, spans, draw);
  const mask = new Uint8Array(length);
  let at = 0;
  for (let k = 0; k < spans; k++) {
    at += clean[k];
    mask.fill(1, at, at + lengths[k]);
    at += lengths[k];
  }
  return mask;
}
