/**
 * How much text an example holds so that what comes out has exactly the wanted size (T5's random_spans_helper; here the
 * counts are the mask's own, so a length can never be off by one).
 */
import { counts } from './spans.ts';

/** Tokens of an example of `raw` tokens of text: encoder inputs and decoder targets, each with its end token. */
export function exampleLengths(raw: number, density: number, mean: number): { inputs: number; targets: number } {
  const { noise, spans } = counts(raw, density, mean);
  return { inputs: raw - noise + spans + 1, targets: noise + spans + 1 };
}

/** The most text whose inputs fit `budget` encoder tokens. At density 1/2 the targets must not outgrow the inputs. */
export function rawForInputs(budget: number, density: number, mean: number): number {
  let raw = budget - 1;
  while (exampleLengths(raw + 1, density, mean).inputs <= budget) raw++;
  const { inputs, targets } = exampleLengths(raw, density, mean);
  return density === 0.5 && targets > inputs ? raw - 1 : raw;
}

/**
 * Positions of an example in one stream, [mode] inputs START targets END, each position predicting the next token;
 * `mode` is 1 with a mode token and 0 without.
 */
export const streamLength = (raw: number, density: number, mean: number, mode: number): number =>
  mode + raw + 2 * counts(raw, density, mean).spans + 1;

/** The most text whose stream fits `budget` positions. */
export function rawForStream(budget: number, density: number, mean: number, mode: number): number {
  let raw = 2;
  while (streamLength(raw + 1, density, mean, mode) <= budget) raw++;
  return raw;
}
