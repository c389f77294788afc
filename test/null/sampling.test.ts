/** Choosing tokens: truncation, penalties, probabilities that are reported; stop strings; drafts from the text itself. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  draw,
  largest,
  logSumExp,
  probabilityOf,
  randomStream,
  Sampler,
  type SamplingOptions,
  weigh,
} from '../../src/infer/sampling/index.ts';
import { PromptLookup } from '../../src/infer/speculation/prompt-lookup.ts';
import { StopStrings } from '../../src/infer/text/stops.ts';

const logits = (...p: number[]): Float32Array => Float32Array.from(p, (x) => Math.log(x));
const kept = (x: Float32Array, o: SamplingOptions): number[] => {
  const w = weigh(x, o)!;
  return [...x.keys()].filter((id) => probabilityOf(w, id) > 0);
};

describe('truncation', () => {
  const x = logits(0.05, 0.4, 0.1, 0.3, 0.15);

  test('min-p is relative to the likeliest, after temperature', () => {
    assert.deepEqual(kept(x, { minP: 0.3 }), [1, 3, 4]);
    assert.deepEqual(kept(x, { minP: 1 }), [1]);
    assert.deepEqual(kept(x, { minP: 0.3, temperature: 0.1 }), [1]);
    assert.deepEqual(kept(x, { minP: 0.3, temperature: 3 }), [0, 1, 2, 3, 4]);
  });

  test('top-k, then top-p of what it left, then min-p', () => {
    assert.deepEqual(kept(x, { topK: 3, topP: 0.5 }), [1, 3]); // 0.4 of 0.85 is less than a half
    assert.deepEqual(kept(x, { topP: 0.39 }), [1]);
    assert.deepEqual(kept(x, { topK: 3, topP: 0.5, minP: 0.9 }), [1]);
  });

  test('top-p keeps what sorting everything would keep, in that order', () => {
    const uniform = randomStream(5);
    for (let round = 0; round < 300; round++) {
      const spread = [0.01, 2, 30][round % 3];
      // Some equal, some impossible, zeros of both signs.
      const values = [Number.NEGATIVE_INFINITY, 0, -0, 0.5 * spread];
      const x = Float32Array.from({ length: 1 + Math.floor(700 * uniform()) }, () =>
        uniform() < 0.2 ? values[Math.floor(4 * uniform())] : spread * (2 * uniform() - 1),
      );
      const possible = [...x.keys()].filter((k) => x[k] > Number.NEGATIVE_INFINITY);
      if (possible.length === 0) continue;
      const temperature = [0.5, 1, 2][round % 3];
      const topP = [0.05, 0.5, 0.9, 0.999][round % 4];
      const order = possible.sort((a, b) => x[b] - x[a] || a - b);
      const weights = order.map((k) => Math.exp((x[k] - x[order[0]]) / temperature));
      const all = weights.reduce((a, b) => a + b, 0);
      let [mass, count] = [0, 0];
      while (count < order.length && (count === 0 || mass < topP * all)) mass += weights[count++];
      assert.deepEqual([...weigh(x, { temperature, topP })!.tokens!], order.slice(0, count), `round ${round}`);
    }
  });

  test('a flat distribution of many tokens is cut where it should be', () => {
    const flat = new Float32Array(20_000);
    assert.equal(weigh(flat, { topP: 0.25 })!.weights.length, 5000);
    assert.deepEqual([...largest(flat, 5)], [0, 1, 2, 3, 4]);
  });

  test('the largest of random numbers, as a sort finds them', () => {
    const uniform = randomStream(3);
    const values = Float32Array.from({ length: 3000 }, () => Math.round(uniform() * 500));
    const order = [...values.keys()].sort((a, b) => values[b] - values[a] || a - b);
    for (const n of [1, 2, 7, 100, 2999, 3000, 4000]) assert.deepEqual([...largest(values, n)], order.slice(0, n));
  });

  test('nothing possible is nothing', () => {
    const none = new Float32Array(4).fill(Number.NEGATIVE_INFINITY);
    assert.equal(weigh(none, {}), null);
    assert.equal(new Sampler().pick(none), null);
  });

  test('frequencies follow the weights, chi-squared', () => {
    const o = { temperature: 0.7, topP: 0.95, minP: 0.05 };
    const w = weigh(x, o)!;
    const uniform = randomStream(11);
    const counts = new Array(5).fill(0);
    const n = 50_000;
    for (let k = 0; k < n; k++) counts[draw(w, uniform())]++;
    let chi = 0;
    for (const id of kept(x, o)) chi += (counts[id] - n * probabilityOf(w, id)) ** 2 / (n * probabilityOf(w, id));
    assert.ok(chi < 16, `${chi}`); // 4 degrees of freedom: 99.7% lie below
    assert.equal(counts.filter((c) => c > 0).length, kept(x, o).length);
  });
});

describe('penalties and bias', () => {
  const flat = (): Float32Array => new Float32Array(5);

  test('presence once, frequency every time, of the continuation only', () => {
    const s = new Sampler({ temperature: 0, presencePenalty: 1, frequencyPenalty: 0.5 }, [4]);
    assert.deepEqual(
      [1, 2, 3, 4, 5, 6].map(() => s.pick(flat())!.token),
      [0, 1, 2, 3, 4, 0],
    );
    const x = flat();
    s.distribution(x);
    assert.deepEqual([...x], [-2, -1.5, -1.5, -1.5, -1.5]);
  });

  test('repetition divides what is positive, multiplies what is negative, prompt included', () => {
    const s = new Sampler({ repetitionPenalty: 2 }, [0, 1, 1]);
    const x = Float32Array.from([3, -3, 3, -3, 0]);
    s.distribution(x);
    assert.deepEqual([...x], [1.5, -6, 3, -3, 0]);
  });

  test('bias and forbidden tokens', () => {
    const s = new Sampler({
      temperature: 0,
      logitBias: new Map([
        [3, 2],
        [99, 1],
      ]),
      never: [3],
    });
    assert.equal(s.pick(flat())!.token, 0);
    const t = new Sampler({ temperature: 0, logitBias: new Map([[3, 2]]) });
    assert.equal(t.pick(flat())!.token, 3);
  });

  test('options out of range are named', () => {
    for (const [o, what] of [
      [{ temperature: -1 }, /temperature -1/],
      [{ topP: 1.5 }, /topP 1.5/],
      [{ minP: -0.1 }, /minP/],
      [{ repetitionPenalty: 0 }, /repetitionPenalty 0/],
      [{ topK: Number.NaN }, /topK NaN/],
      [{ topK: 1.5 }, /topK 1\.5 is not a whole number/],
    ] as [SamplingOptions, RegExp][])
      assert.throws(() => new Sampler(o), what);
  });

  test("log-probabilities are the model's own", () => {
    const x = logits(0.1, 0.2, 0.7);
    const s = new Sampler({ temperature: 0, logitBias: new Map([[0, 9]]), logprobs: 2 });
    const pick = s.pick(x.slice())!;
    assert.equal(pick.token, 0);
    assert.ok(Math.abs(pick.logprob! - Math.log(0.1)) < 1e-6);
    assert.deepEqual(
      pick.top!.map((t) => t.token),
      [2, 1],
    );
    assert.ok(Math.abs(pick.top![0].logprob - Math.log(0.7)) < 1e-6);
    assert.ok(Math.abs(logSumExp(x)) < 1e-6);
    assert.equal(new Sampler({ temperature: 0 }).pick(x)!.logprob, null);
  });

  test('the same seed picks the same; a mask is asked and told', () => {
    const told: number[] = [];
    const mask = {
      restrict: (x: Float32Array) => x.fill(Number.NEGATIVE_INFINITY, 0, 2),
      advance: (t: number) => void told.push(t),
    };
    const run = (): number[] => {
      const s = new Sampler({ seed: 5, mask });
      return Array.from({ length: 20 }, () => s.pick(flat())!.token);
    };
    const first = run();
    assert.deepEqual(run(), first);
    assert.deepEqual(told, [...first, ...first]);
    assert.ok(first.every((t) => t >= 2));
  });
});

describe('stop strings', () => {
  const feed = (stops: string[], pieces: string[]): { out: string; found: string | null } => {
    const s = new StopStrings(stops);
    const out = pieces.map((p) => s.push(p)).join('');
    return { out: out + (s.found === null ? s.end() : ''), found: s.found };
  };

  test('found wherever the pieces are cut', () => {
    const text = 'one two END three';
    for (let a = 0; a <= text.length; a++)
      for (let b = a; b <= text.length; b++)
        assert.deepEqual(feed(['END', 'xyz'], [text.slice(0, a), text.slice(a, b), text.slice(b)]), {
          out: 'one two ',
          found: 'END',
        });
  });

  test('the first of several; beginnings that come to nothing are let out', () => {
    assert.deepEqual(feed(['cd', 'b'], ['a', 'bcd']), { out: 'a', found: 'b' });
    assert.deepEqual(feed(['END'], ['E', 'N', 'x', 'EN']), { out: 'ENxEN', found: null });
    assert.deepEqual(feed(['aab'], ['aaaab']), { out: 'aa', found: 'aab' });
    assert.deepEqual(feed([''], ['abc']), { out: 'abc', found: null });
  });

  test('what may begin one is held back', () => {
    const s = new StopStrings(['</s>']);
    assert.equal(s.push('hi <'), 'hi ');
    assert.equal(s.push('/'), '');
    assert.equal(s.push('b'), '</b');
  });
});

describe('drafts by looking up', () => {
  test('a text that repeats is guessed; the longest run counts, the latest place first', () => {
    const d = new PromptLookup();
    assert.deepEqual(d.draft([1, 2, 3, 4, 5, 1, 2, 3], 3), [4, 5, 1]);
    assert.deepEqual(new PromptLookup().draft([7, 1, 2, 9, 1, 2, 5, 7, 1, 2], 2), [9, 1]);
    assert.deepEqual(new PromptLookup().draft([1, 2, 3], 4), []);
  });

  test('it stops guessing while guesses are wrong, and tries again later', () => {
    const d = new PromptLookup({ pause: 10 });
    const uniform = randomStream(2);
    const tokens = [0, 1, 0, 1];
    let asked = 0;
    for (let k = 0; k < 400; k++) {
      asked += d.draft(tokens, 4).length > 0 ? 1 : 0;
      tokens.push(Math.floor(uniform() * 40));
    }
    assert.ok(asked > 5 && asked < 80, `${asked}`);
    const e = new PromptLookup();
    const loop = Array.from({ length: 10 }, (_, k) => k);
    let right = 0;
    for (let k = 0; k < 100; k++) {
      const draft = e.draft(loop, 4);
      const next = loop[loop.length - 10];
      if (draft[0] === next) right++;
      loop.push(next);
    }
    assert.ok(right > 80, `${right}`);
    assert.ok(e.acceptance > 0.9);
  });
});
