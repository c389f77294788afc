// The page's own parsing: events that arrive in pieces, characters that lie in several tokens.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { errorOf } from '../../web/src/lib/errors.ts';
import { bytes, count } from '../../web/src/lib/format.ts';
import { events } from '../../web/src/lib/sse.ts';
import { isControl, percent, shown, surprise, textOf, texts } from '../../web/src/lib/tokens.ts';

const stream = (...parts: (string | Uint8Array)[]): ReadableStream<Uint8Array> =>
  new ReadableStream({
    start(c) {
      for (const p of parts) c.enqueue(typeof p === 'string' ? new TextEncoder().encode(p) : p);
      c.close();
    },
  });
async function collect(body: ReadableStream<Uint8Array>): Promise<string[]> {
  const all: string[] = [];
  for await (const data of events(body)) all.push(data);
  return all;
}

describe('server-sent events', () => {
  test('cut anywhere, even within a character', async () => {
    const whole = new TextEncoder().encode(
      'data: {"a":"é😀"}\n\n: ping\n\ndata: two\ndata:lines\r\n\r\ndata: [DONE]\n\n',
    );
    const wanted = ['{"a":"é😀"}', 'two\nlines', '[DONE]'];
    for (let size = 1; size <= whole.length; size++) {
      const parts = Array.from({ length: Math.ceil(whole.length / size) }, (_, k) =>
        whole.slice(k * size, (k + 1) * size),
      );
      assert.deepEqual(await collect(stream(...parts)), wanted, `pieces of ${size}`);
    }
  });

  test('a last event without an empty line counts, an empty stream gives none', async () => {
    assert.deepEqual(await collect(stream('data: a\n\ndata: b')), ['a', 'b']);
    assert.deepEqual(await collect(stream()), []);
  });

  test('leaving early cancels the body', async () => {
    let cancelled = false;
    const body = new ReadableStream<Uint8Array>({
      pull: (c) => c.enqueue(new TextEncoder().encode('data: x\n\n')),
      cancel: () => {
        cancelled = true;
      },
    });
    for await (const data of events(body)) {
      assert.equal(data, 'x');
      break;
    }
    await new Promise(setImmediate);
    assert.ok(cancelled);
  });
});

describe('tokens', () => {
  const token = (text: string, bytes: number[] | null = null) => ({ text, bytes, logprob: -1 });

  test('a character in several tokens is shown once, with the last of them', () => {
    const [a, b, c, d] = [...new TextEncoder().encode('😀')];
    const parts = [token('hi '), token('bytes:\\xf0\\x9f', [a, b]), token('x', [c]), token('y', [d]), token('!')];
    assert.deepEqual(texts(parts), ['hi ', '', '', '😀', '!']);
    assert.equal(textOf(parts), 'hi 😀!');
    assert.deepEqual(texts([token('', [a, b])]), ['�'], 'what never becomes whole is not lost');
    assert.deepEqual(texts([]), []);
  });

  test('blanks can be seen in lists', () => {
    assert.equal(shown(token(' a\n\tb')), '␣a↵⇥b');
  });

  test('control tokens', () => {
    assert.ok(isControl(token('<|endoftext|>')) && isControl(token('</s>')));
    assert.ok(!isControl(token('<|')) && !isControl(token('a <|x|>')) && !isControl(token('<b>')));
  });

  test('numbers', () => {
    assert.deepEqual([1, 0.123, 0.0123, 0.00001].map(percent), ['100%', '12%', '1.2%', '<0.1%']);
    assert.deepEqual(
      [0.9, 0.6, 0.3, 0.2, 0.05, 0.001].map((p) => surprise(Math.log(p))),
      [0, 1, 2, 3, 4, 5],
    );
    assert.deepEqual([0, 999, 1000, 1_234_567].map(bytes), ['0 B', '999 B', '1.00 KB', '1.23 MB']);
    assert.deepEqual([12, 1110, 7_240_000, 1.8e12].map(count), ['12', '1.11K', '7.24M', '1.80T']);
  });
});

test('errors say what to do', async () => {
  const answer = (status: number, code: string | null, headers: Record<string, string> = {}) =>
    errorOf(new Response(JSON.stringify({ error: { message: 'It went wrong', code } }), { status, headers }));
  assert.equal((await answer(401, null)).hint, 'Enter an API key.');
  assert.equal((await answer(404, 'model_not_found')).hint, 'Choose another run at the top.');
  assert.equal((await answer(429, null, { 'retry-after': '3' })).hint, 'Try again in 3 s.');
  assert.match((await answer(400, 'context_length_exceeded')).hint, /Shorten the text/);
  assert.equal((await answer(503, 'overloaded')).message, 'It went wrong.');
  assert.equal((await errorOf(new Response('<html>', { status: 502 }))).message, 'The server answered 502.');
});
