/** Special tokens of the mixture. They are appended to a tokenizer, so text can never encode to them. */
import { MODES } from './mixtures.ts';

/** Before the targets: the last token of the given part in one stream, the decoder's first input otherwise. */
export const START = '<|start|>';
/** Ends the given part of an encoder, and the targets: an example is over, not its document. */
export const END = '<|end|>';
export const modeToken = (mode: (typeof MODES)[number]): string => `<|${mode}|>`;
export const sentinelToken = (k: number): string => `<|s_${k}|>`;

/** All of them, for examples of at most `spans` spans and one sentinel to spare. */
export const ul2Specials = (spans: number): string[] => [
  ...MODES.map(modeToken),
  START,
  END,
  ...Array.from({ length: spans + 1 }, (_, k) => sentinelToken(k)),
];
