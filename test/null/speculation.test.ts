/** Speculative sampling preserves the distribution; the governor finds out which way is faster. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { draw, probabilityOf, randomStream, Sampler, type Weights, weigh } from '../../src/infer/sampling/index.ts';
import { acceptOrDraw, remainder } from '../../src/infer/speculation/accept.ts';
import { Governor } from '../../src/infer/speculation/governor.ts';

const V = 8;
const random = (seed: number, spread: number): Float32Array => {
  const u = randomStream(seed);
  return Float32Array.from({ length: V }, () => spread * (u() - 0.5));
};

/** Draws from q, then keeps or replaces; frequencies of what comes out, and the share that was kept. */
function run(p: Weights, q: Weights, n: number): { shares: number[]; kept: number } {
  const u = randomStream(99);
  const counts = new Array(V).fill(0);
  let kept = 0;
  for (let k = 0; k < n; k++) {
    const { token, accepted } = acceptOrDraw(p, draw(q, u()), q, u);
    counts[token]++;
    kept += accepted ? 1 : 0;
  }
  return { shares: counts.map((c) => c / n), kept: kept / n };
}

describe('what is kept or replaced is distributed as the large model says', () => {
  const n = 300_000;
  for (const [name, op, oq] of [
    ['plain', {}, {}],
    ['temperatures differ', { temperature: 0.7 }, { temperature: 1.3 }],
    ['truncated on both sides', { topP: 0.8 }, { topK: 3 }],
    ['the draft is nearly certain', {}, { temperature: 0.05 }],
    ['the draft covers other tokens', { topK: 2 }, { minP: 0.5 }],
  ] as const)
    test(name, () => {
      const p = weigh(random(1, 4), op)!;
      const q = weigh(random(2, 4), oq)!;
      const { shares, kept } = run(p, q, n);
      let [distance, overlap, chi] = [0, 0, 0];
      for (let t = 0; t < V; t++) {
        const [px, qx] = [probabilityOf(p, t), probabilityOf(q, t)];
        distance += Math.abs(shares[t] - px) / 2;
        overlap += Math.min(px, qx);
        if (px > 0) chi += (n * (shares[t] - px) ** 2) / px;
        else assert.equal(shares[t], 0, `token ${t} cannot come`);
      }
      assert.ok(distance < 4e-3, `total variation ${distance}`);
      assert.ok(chi < 26, `chi-squared ${chi}`); // 7 degrees of freedom: 99.95% lie below
      assert.ok(Math.abs(kept - overlap) < 4e-3, `kept ${kept}, sum of min(p, q) is ${overlap}`);
    });

  test('nothing remains of p where q is p', () => {
    const p = weigh(random(3, 2), {})!;
    assert.equal(run(p, p, 1000).kept, 1);
    assert.equal(remainder(p, p), p);
  });
});

test('a sampler verifies as it picks: two tokens in a row, against drawing them one by one', () => {
  const logits = [random(5, 3), random(6, 3)];
  const q = [weigh(random(7, 3), {})!, weigh(random(8, 3), {})!];
  const n = 60_000;
  const pairs = (drafted: boolean): number[] => {
    const counts = new Array(V * V).fill(0);
    const u = randomStream(drafted ? 3 : 4);
    for (let k = 0; k < n; k++) {
      const s = new Sampler({ temperature: 0.9, presencePenalty: 0.5, seed: k * 7 + (drafted ? 1 : 2) });
      const one = (i: number): number =>
        drafted ? s.verify(logits[i].slice(), draw(q[i], u()), q[i])!.token : s.pick(logits[i].slice())!.token;
      const a = one(0);
      counts[a * V + one(1)]++;
    }
    return counts;
  };
  const [a, b] = [pairs(true), pairs(false)];
  let chi = 0;
  let cells = 0;
  a.forEach((x, k) => {
    if (x + b[k] === 0) return;
    chi += (x - b[k]) ** 2 / (x + b[k]);
    cells++;
  });
  const freedom = cells - 1;
  assert.ok(chi < freedom + 4 * Math.sqrt(2 * freedom), `chi-squared ${chi} with ${freedom} degrees of freedom`);
});

describe('the governor', () => {
  /** Steps until it has settled, then the share of steps with drafts. */
  const share = (perDraftStep: number, msDraft: number, ms: number): number => {
    const g = new Governor();
    let drafted = 0;
    for (let k = 0; k < 1200; k++) {
      const on = g.wants(1);
      g.note(on, on ? perDraftStep : 1, on ? msDraft : ms);
      if (k >= 200) drafted += on ? 1 : 0;
    }
    return drafted / 1000;
  };

  test('drafts while they pay, and hardly ever while they do not', () => {
    assert.ok(share(3, 1.5, 1) > 0.95);
    assert.ok(share(1.2, 1.5, 1) < 0.06);
    assert.ok(share(1.2, 1.1, 1) > 0.9);
  });

  test('finds out when it begins to pay', () => {
    const g = new Governor();
    let drafted = 0;
    for (let k = 0; k < 3000; k++) {
      const on = g.wants(1);
      const tokens = k < 1000 ? 1 : 4;
      g.note(on, on ? tokens : 1, on ? 1.5 : 1);
      if (k >= 2000) drafted += on ? 1 : 0;
    }
    assert.ok(drafted > 900, `${drafted} of 1000`);
  });
});
