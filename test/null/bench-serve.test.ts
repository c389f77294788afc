// What the server's benchmark counts: streams cut anywhere, answers that are lost, what is asked.
import assert from 'node:assert/strict';
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, describe, test } from 'node:test';
import { EventParser } from '../../bench/serve/client.ts';
import { drive, type Load } from '../../bench/serve/load.ts';
import { feltOf, goodShare, percentile } from '../../bench/serve/stats.ts';
import { arrivals, askOf, LONGEST, type Work } from '../../bench/serve/work.ts';

const work: Work = { seed: 7, shared: 0, ids: [256, 999] };

test('events, cut anywhere, with any line end', () => {
  const text = 'data: {"a":1}\n\n: ping\n\ndata: two\r\ndata:lines\r\n\r\ndata: [DONE]\n\n';
  for (let size = 1; size <= text.length; size++) {
    const seen: string[] = [];
    const parser = new EventParser((data) => seen.push(data));
    for (let k = 0; k < text.length; k += size) parser.push(text.slice(k, k + size));
    assert.deepEqual(seen, ['{"a":1}', 'two\nlines', '[DONE]'], `pieces of ${size}`);
  }
});

describe('what is asked', () => {
  const many = Array.from({ length: 4000 }, (_, k) => askOf(work, k));
  const mean = (x: number[]): number => x.reduce((a, b) => a + b, 0) / x.length;

  test('depends on the number of the request alone, and has the lengths that are stated', () => {
    assert.deepEqual(askOf(work, 17), many[17]);
    assert.notDeepEqual(askOf({ ...work, seed: 8 }, 17), many[17]);
    // Tails are cut: a little below 80.5 and 169.
    assert.ok(Math.abs(mean(many.map((a) => a.prompt.length)) - 78) < 6);
    assert.ok(Math.abs(mean(many.map((a) => a.maxTokens)) - 150) < 12);
    for (const { prompt, maxTokens } of many) {
      assert.ok(prompt.length + maxTokens <= LONGEST && prompt.length > 0 && maxTokens > 0);
      assert.ok(prompt.every((id) => id >= 256 && id < 999));
    }
  });

  test('a shared beginning is the same in all, what follows is not', () => {
    const [a, b] = [3, 4].map((k) => askOf({ ...work, shared: 64 }, k).prompt);
    assert.deepEqual(a.slice(0, 64), b.slice(0, 64));
    assert.notDeepEqual(a.slice(64, 68), b.slice(64, 68));
  });

  test('arrivals: as many a second as wanted, the gaps exponential', () => {
    const times = arrivals(20, 8000, 3);
    const gaps = times.map((t, k) => t - (times[k - 1] ?? 0));
    assert.ok(Math.abs(mean(gaps) - 50) < 2);
    const deviation = Math.sqrt(mean(gaps.map((g) => (g - 50) ** 2)));
    assert.ok(Math.abs(deviation - 50) < 3, 'as large as the mean');
  });
});

describe('what came of it', () => {
  type Say = (out: ServerResponse, tokens: number) => void;
  let say: Say = () => {};
  const server = createServer((request, out) => {
    let body = '';
    request.on('data', (part) => {
      body += part;
    });
    request.on('end', () => say(out, JSON.parse(body).max_tokens));
  });
  after(() => server.close());
  const listening = new Promise<string>((done) =>
    server.listen(0, '127.0.0.1', () => done(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)),
  );
  const load = async (how: Say, more: object = { streams: 2 }): Promise<Load> => {
    say = how;
    const url = await listening;
    return drive({ ...{ url, model: 'm', temperature: 0, work: { ...work, most: 5 }, first: 0, count: 6 }, ...more });
  };
  const event = (data: object): string => `data: ${JSON.stringify(data)}\n\n`;
  const answer = (tokens: number, reason: string | null, said: number): string =>
    Array.from({ length: tokens }, (_, k) =>
      event({ choices: [{ text: 'x', finish_reason: k === tokens - 1 ? reason : null }] }),
    ).join('') + event({ choices: [], usage: { prompt_tokens: 3, completion_tokens: said } });
  const done = 'data: [DONE]\n\n';

  test('whole answers are finished and their tokens counted', async () => {
    const loads = [await load((out, n) => out.end(answer(n, 'length', n) + done))];
    const felt = feltOf(loads, 6);
    assert.deepEqual([felt.sent, felt.finished, felt.lost], [6, 6, 0]);
    assert.equal(felt.tokens, 30);
    assert.equal(felt.promptTokens, 18);
    assert.ok(felt.tokensPerSecond > 0 && felt.ttft.p99 >= felt.ttft.p50 && felt.ttft.p50 > 0);
    assert.equal(goodShare(loads[0]), 1);
  });

  for (const [name, how] of Object.entries<Say>({
    'no end': (out, n) => out.end(answer(n, 'length', n)),
    'too few tokens': (out, n) => out.end(answer(n - 1, 'length', n - 1) + done),
    'another reason': (out, n) => out.end(answer(n, 'stop', n) + done),
    'an error in the stream': (out, n) => out.end(answer(n, 'length', n) + event({ error: { message: 'no' } }) + done),
    'a refusal': (out) => out.writeHead(503).end('{"error":{"message":"overloaded"}}'),
    'a cut connection': (out) => {
      out.write(event({ choices: [{ text: 'x', finish_reason: null }] }));
      setImmediate(() => out.destroy());
    },
  }))
    test(`lost: ${name}`, async () => {
      const felt = feltOf([await load(how)], 6);
      assert.deepEqual([felt.finished, felt.lost], [0, 6]);
    });

  test('open loop: everything is sent, times count from when it was due', async () => {
    const l = await load((out, n) => out.end(answer(n, 'length', n) + done), { rate: 100, streams: undefined });
    assert.equal(feltOf([l], 6).finished, 6);
    const due = arrivals(100, 6, work.seed);
    const first = Math.min(...l.answers.map((a) => a.due));
    const gaps = l.answers.map((a) => a.due - first + due[0]).sort((a, b) => a - b);
    for (const [k, gap] of gaps.entries()) assert.ok(Math.abs(gap - due[k]) < 1e-6);
  });

  test('percentiles by nearest rank', () => {
    const x = Array.from({ length: 200 }, (_, k) => 200 - k);
    assert.deepEqual([percentile(x, 0.5), percentile(x, 0.99), percentile([], 0.5)], [100, 198, 0]);
  });
});
