/** Fill in the middle: a text as prefix, suffix, middle, so that the middle is predicted from both sides. */

/** Where random choices come from. */
export interface Draw {
  below(n: number): number;
}

export const FIM_PREFIX = '<|fim_prefix|>';
export const FIM_SUFFIX = '<|fim_suffix|>';
export const FIM_MIDDLE = '<|fim_middle|>';
export const fimSpecials = [FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE];

export interface FimIds {
  readonly prefix: number;
  readonly suffix: number;
  readonly middle: number;
  /** Ends the middle. */
  readonly end: number;
}

export type Order = 'psm' | 'spm';
export type Parts = readonly [prefix: ArrayLike<number>, middle: ArrayLike<number>, suffix: ArrayLike<number>];

/** Control tokens and end that a text gains. */
export const FIM_OVERHEAD = 4;

/**
 * psm: PRE prefix SUF suffix MID middle END. spm: PRE SUF suffix MID prefix middle END, in which middle and prefix are
 * contiguous and control tokens come in psm's order (variant 2 of Bavarian et al. 2022).
 */
export function fimSequence([prefix, middle, suffix]: Parts, ids: FimIds, order: Order): number[] {
  const [p, m, s] = [prefix, middle, suffix].map((part) => Array.from(part));
  return order === 'psm'
    ? [ids.prefix, ...p, ids.suffix, ...s, ids.middle, ...m, ids.end]
    : [ids.prefix, ids.suffix, ...s, ids.middle, ...p, ...m, ids.end];
}

/** What comes before the middle: the prompt that asks for it. */
export function fimPrompt(prefix: ArrayLike<number>, suffix: ArrayLike<number>, ids: FimIds, order: Order): number[] {
  return fimSequence([prefix, [], suffix], ids, order).slice(0, -1);
}

/** The text of a sequence; undefined when its control tokens are not in order. */
export function fromFim(sequence: readonly number[], ids: FimIds): number[] | undefined {
  const [suf, mid] = [sequence.indexOf(ids.suffix), sequence.indexOf(ids.middle)];
  if (sequence[0] !== ids.prefix || suf < 1 || mid < suf || sequence[sequence.length - 1] !== ids.end) return undefined;
  return [...sequence.slice(1, suf), ...sequence.slice(mid + 1, -1), ...sequence.slice(suf + 1, mid)];
}

/** Cuts tokens at two places, each pair of places equally likely. */
export function cutTokens(tokens: Int32Array, draw: Draw): Parts {
  const [a, b] = [draw.below(tokens.length + 1), draw.below(tokens.length + 1)].sort((x, y) => x - y);
  return [tokens.subarray(0, a), tokens.subarray(a, b), tokens.subarray(b)];
}

/** Cuts text at two of its characters: a middle may then begin and end within what would be one token. */
export function cutText(text: Uint8Array, draw: Draw): [Uint8Array, Uint8Array, Uint8Array] {
  const starts: number[] = [];
  for (let k = 0; k < text.length; k++) if ((text[k] & 0xc0) !== 0x80) starts.push(k);
  starts.push(text.length);
  const [a, b] = [starts[draw.below(starts.length)], starts[draw.below(starts.length)]].sort((x, y) => x - y);
  return [text.subarray(0, a), text.subarray(a, b), text.subarray(b)];
}
