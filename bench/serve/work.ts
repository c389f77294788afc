/** What clients ask: prompts and lengths that depend on the request's number and the seed alone. */

export interface Work {
  readonly seed: number;
  /** Tokens of a beginning that all prompts share; the rest of a prompt is its own. */
  readonly shared: number;
  /** Tokens of an answer at most, below what its length would be. */
  readonly most?: number;
  /** Ids of prompts: from (included) and to (excluded). */
  readonly ids: readonly [number, number];
}

export interface Ask {
  readonly prompt: number[];
  readonly maxTokens: number;
}

/**
 * ShareGPT's dialogues as Kwon et al. (2023, vLLM, section 6.1) describe them: prompts of 161 tokens and answers of 338 on
 * average, both with long tails; here log-normal, every length halved (SCALE) so that 256 answers fit a short run.
 */
const SCALE = 0.5;
const PROMPT = { mean: 161 * SCALE, sigma: 1.1, least: 4, most: 512 };
const ANSWER = { mean: 338 * SCALE, sigma: 0.8, least: 8, most: 384 };
/** Tokens of the longest text. */
export const LONGEST = PROMPT.most + ANSWER.most;

export const described = `log-normal lengths: prompts of ${PROMPT.mean} tokens on average (${PROMPT.least} to ${PROMPT.most}), answers of ${ANSWER.mean} (${ANSWER.least} to ${ANSWER.most}), greedy, answers cut at their length`;

/** Uniform numbers in [0, 1) from a seed (splitmix32). */
export function uniform(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return ((z ^ (z >>> 15)) >>> 0) / 2 ** 32;
  };
}

function length(random: () => number, { mean, sigma, least, most }: typeof PROMPT): number {
  // Box-Muller; the mean of a log-normal is exp(mu + sigma^2 / 2).
  const normal = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const n = Math.exp(Math.log(mean) - sigma ** 2 / 2 + sigma * normal);
  return Math.round(Math.min(most, Math.max(least, n)));
}

export function askOf({ seed, shared, most = ANSWER.most, ids: [from, to] }: Work, k: number): Ask {
  const lengths = uniform(seed ^ Math.imul(k + 1, 0x85ebca6b));
  const [own, maxTokens] = [length(lengths, PROMPT), length(lengths, ANSWER)];
  const token = (random: () => number): number => from + Math.floor(random() * (to - from));
  const common = uniform(seed);
  const prompt = Array.from({ length: shared }, () => token(common));
  // What comes after a shared beginning is short, so that both fit where a prompt of its own does.
  const rest = shared > 0 ? Math.min(own, PROMPT.most - shared) : own;
  for (let t = 0; t < rest; t++) prompt.push(token(lengths));
  return { prompt, maxTokens: Math.min(most, maxTokens) };
}

/** Milliseconds at which requests arrive: a Poisson process of `rate` requests a second. */
export function arrivals(rate: number, count: number, seed: number): number[] {
  const random = uniform(seed);
  let at = 0;
  return Array.from({ length: count }, () => (at += (-1000 * Math.log(1 - random())) / rate));
}
