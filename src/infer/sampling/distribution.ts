/**
 * From logits to the distribution that a token is drawn from. In this order: bias, penalties, what a grammar allows,
 * temperature, top-k, top-p, min-p. Probabilities of top-p and min-p are those after temperature, of the tokens that
 * top-k left.
 */
import { AnsatzError } from '../../backend/errors.ts';

export interface SamplingOptions {
  /** 0 takes the most likely token. */
  readonly temperature?: number;
  /** Keep the k most likely; 0 keeps all. */
  readonly topK?: number;
  /** Keep the smallest set whose probability reaches p (Holtzman et al. 2020). */
  readonly topP?: number;
  /** Keep tokens at least this share as likely as the likeliest (Nguyen et al. 2024). */
  readonly minP?: number;
  /** Taken off the logit of every token that the continuation has, and once more for every time that it has it. */
  readonly presencePenalty?: number;
  readonly frequencyPenalty?: number;
  /** Divides positive logits, multiplies negative ones, of tokens in prompt or continuation (Keskar et al. 2019). */
  readonly repetitionPenalty?: number;
  /** Added to logits by token. */
  readonly logitBias?: ReadonlyMap<number, number>;
  /** Tokens that are never picked. */
  readonly never?: readonly number[];
}

/** What a distribution is made by, once logits have been adjusted. */
export type Truncation = Pick<SamplingOptions, 'temperature' | 'topK' | 'topP' | 'minP'>;

/** @throws AnsatzError that names the option that is out of range. */
export function checkSampling(o: SamplingOptions): void {
  const range = (name: keyof SamplingOptions, lo: number, hi: number): void => {
    const x = o[name] as number | undefined;
    if (x !== undefined && !(x >= lo && x <= hi))
      throw new AnsatzError(`${name} ${x} is not between ${lo} and ${hi === Infinity ? 'any number' : hi}`);
  };
  range('temperature', 0, Infinity);
  range('topK', 0, Infinity);
  if (!Number.isInteger(o.topK ?? 0)) throw new AnsatzError(`topK ${o.topK} is not a whole number`);
  range('topP', 0, 1);
  range('minP', 0, 1);
  range('presencePenalty', -Infinity, Infinity);
  range('frequencyPenalty', -Infinity, Infinity);
  if (o.repetitionPenalty !== undefined && !(o.repetitionPenalty > 0))
    throw new AnsatzError(`repetitionPenalty ${o.repetitionPenalty} must be above 0`);
}

/** How often each token occurs in the prompt and in the continuation. */
export interface TokenCounts {
  readonly prompt: ReadonlySet<number>;
  readonly made: ReadonlyMap<number, number>;
}

/** Bias, penalties and forbidden tokens, in place. */
export function adjust(logits: Float32Array, o: SamplingOptions, counts: TokenCounts): void {
  for (const [id, bias] of o.logitBias ?? []) if (id >= 0 && id < logits.length) logits[id] += bias;
  const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = o;
  if (repetitionPenalty !== 1) {
    const repeat = (id: number): void => {
      logits[id] = logits[id] > 0 ? logits[id] / repetitionPenalty : logits[id] * repetitionPenalty;
    };
    for (const id of counts.prompt) repeat(id);
    for (const id of counts.made.keys()) if (!counts.prompt.has(id)) repeat(id);
  }
  if (presencePenalty !== 0 || frequencyPenalty !== 0)
    for (const [id, n] of counts.made) logits[id] -= presencePenalty + frequencyPenalty * n;
  for (const id of o.never ?? []) if (id < logits.length) logits[id] = Number.NEGATIVE_INFINITY;
}

/** The most likely token; the lower of equals; -1 when none is possible. */
export function likeliest(logits: Float32Array): number {
  let best = -1;
  let top = Number.NEGATIVE_INFINITY;
  for (let k = 0; k < logits.length; k++)
    if (logits[k] > top) {
      top = logits[k];
      best = k;
    }
  return best;
}

/** Tokens that may be picked with weights that need not sum to 1. Equal weights: the lower token first. */
export interface Weights {
  readonly tokens: Int32Array | null;
  readonly weights: Float64Array;
  readonly total: number;
}

/** Tokens beyond this many nats below the likeliest cannot matter to a sum of probabilities in double precision. */
const NEGLIGIBLE = 40;

/** The distribution of adjusted logits; null when nothing is possible. `tokens` is null when it covers all of them. */
export function weigh(logits: Float32Array, o: SamplingOptions): Weights | null {
  const { temperature = 1, topK = 0, topP = 1, minP = 0 } = o;
  const best = likeliest(logits);
  if (best < 0) return null;
  const top = logits[best];
  if (temperature === 0) return { tokens: Int32Array.of(best), weights: Float64Array.of(1), total: 1 };
  const weight = (id: number): number => Math.exp((logits[id] - top) / temperature);
  if (topP >= 1 && topK === 0 && minP === 0) return weighAll(logits, top, temperature, new Float64Array(logits.length));
  const floor = top - temperature * (minP > 0 ? Math.min(NEGLIGIBLE, -Math.log(minP)) : NEGLIGIBLE);
  const some = topK > 0 && topK < logits.length;
  const nucleus = !some && topP < 1 ? nucleusOf(logits, floor, topP, (below) => Math.exp(below / temperature)) : null;
  let kept = some ? largest(logits, topK) : above(logits, nucleus?.floor ?? floor);
  let weights = Float64Array.from(kept, weight);
  const cut = (count: number): void => {
    kept = kept.subarray(0, count);
    weights = weights.subarray(0, count);
  };
  if (topP < 1) {
    const all = nucleus?.all ?? weights.reduce((a, b) => a + b, 0);
    let [mass, count] = [0, 0];
    while (count < kept.length && (count === 0 || mass < topP * all)) mass += weights[count++];
    cut(count);
  }
  if (minP > 0) {
    let count = weights.length;
    while (count > 1 && weights[count - 1] < minP) count--;
    cut(count);
  }
  return { tokens: kept, weights, total: weights.reduce((a, b) => a + b, 0) };
}

function weighAll(logits: Float32Array, top: number, temperature: number, weights: Float64Array): Weights {
  let total = 0;
  for (let k = 0; k < logits.length; k++) {
    const w = Math.exp((logits[k] - top) / temperature);
    weights[k] = w;
    total += w;
  }
  return { tokens: null, weights, total };
}

/** Weights of a distribution that nobody keeps. */
let scratch = new Float64Array(0);

/** Draws from adjusted logits, by temperature and truncation alone; -1 when nothing is possible. */
export function drawFrom(logits: Float32Array, o: SamplingOptions, uniform: () => number): number {
  const { temperature = 1, topK = 0, topP = 1, minP = 0 } = o;
  const best = likeliest(logits);
  if (best < 0 || temperature === 0) return best;
  if (topP < 1 || topK !== 0 || minP !== 0) return draw(weigh(logits, o)!, uniform());
  if (scratch.length !== logits.length) scratch = new Float64Array(logits.length);
  return draw(weighAll(logits, logits[best], temperature, scratch), uniform());
}

/** Draws with `uniform` in [0, 1). */
export function draw({ tokens, weights, total }: Weights, uniform: number): number {
  let left = uniform * total;
  let last = -1;
  for (let k = 0; k < weights.length; k++) {
    if (weights[k] === 0) continue;
    last = k;
    left -= weights[k];
    if (left < 0) break;
  }
  return tokens ? tokens[last] : last;
}

/** The same with a number that is there already. */
export const sample = (logits: Float32Array, o: SamplingOptions, uniform: number): number =>
  drawFrom(logits, o, () => uniform);

/** The probability of a token. */
export function probabilityOf({ tokens, weights, total }: Weights, token: number): number {
  if (!tokens) return weights[token] / total;
  const at = tokens.indexOf(token);
  return at < 0 ? 0 : weights[at] / total;
}

const byLogit =
  (logits: Float32Array) =>
  (a: number, b: number): number =>
    logits[b] - logits[a] || a - b;

/** A logit at or below which the set of top-p ends, near enough that few are sorted in vain; and the mass of all. */
function nucleusOf(
  logits: Float32Array,
  floor: number,
  p: number,
  weight: (below: number) => number,
): { floor: number; all: number } {
  const top = logits[likeliest(logits)];
  const width = (top - floor) / BUCKETS;
  const masses = new Float64Array(BUCKETS + 1);
  let all = 0;
  for (let k = 0; k < logits.length; k++) {
    if (!(logits[k] >= floor)) continue;
    const w = weight(logits[k] - top);
    all += w;
    masses[Math.floor((top - logits[k]) / width)] += w;
  }
  // A little more than p: sums in another order round in another way.
  const wanted = p * all * (1 + 1e-9);
  let [mass, bucket] = [0, 0];
  while (bucket < BUCKETS && mass < wanted) mass += masses[bucket++];
  return { floor: bucket === BUCKETS ? floor : top - bucket * width, all };
}
const BUCKETS = 64;

/** Ids and bits of logits share a number that Float64Array.sort orders without being told how: ten times as fast. */
const IDS = 2 ** 21;
const asFloat = new Float32Array(1);
const asBits = new Uint32Array(asFloat.buffer);

/** Tokens above a logit, the likeliest first. */
function above(logits: Float32Array, floor: number): Int32Array {
  const keys = new Float64Array(logits.length);
  let n = 0;
  for (let k = 0; k < logits.length; k++) {
    if (!(logits[k] >= floor)) continue;
    asFloat[0] = logits[k] + 0; // -0 and 0 are equals
    // Bits of floats ascend with positive ones and descend with negative ones; here the largest comes first.
    const rank = asBits[0] >>> 31 ? asBits[0] : 0x7fffffff - asBits[0];
    keys[n++] = rank * IDS + k;
  }
  return Int32Array.from(keys.subarray(0, n).sort(), (key) => key % IDS);
}

/** The n likeliest tokens, the likeliest first: a heap of those kept so far, the least likely at its root. */
export function largest(logits: Float32Array, n: number): Int32Array {
  const order = byLogit(logits);
  const heap: number[] = [];
  const down = (from: number): void => {
    for (let k = from; ; ) {
      let worst = k;
      for (const child of [2 * k + 1, 2 * k + 2])
        if (child < heap.length && order(heap[child], heap[worst]) > 0) worst = child;
      if (worst === k) return;
      [heap[k], heap[worst]] = [heap[worst], heap[k]];
      k = worst;
    }
  };
  for (let id = 0; id < logits.length; id++) {
    if (logits[id] === Number.NEGATIVE_INFINITY) continue;
    if (heap.length < n) {
      heap.push(id);
      if (heap.length === n) for (let k = n >> 1; k >= 0; k--) down(k);
    } else if (logits[id] > logits[heap[0]]) {
      heap[0] = id;
      down(0);
    }
  }
  return Int32Array.from(heap).sort(order);
}
