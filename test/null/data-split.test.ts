import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AnsatzError } from '../../src/backend/errors.ts';
import { bitsPerByte, compressionBaselines } from '../../src/data/baselines.ts';
import { splitHeldOut } from '../../src/data/split.ts';
import { clusterByLines, lineOverlap } from '../../src/data/split-clusters.ts';
import type { Document } from '../../src/data/types.ts';

const words = 'loss gradient token kernel tensor layer vector matrix value shape index batch step scale norm'.split(
  ' ',
);

function random(seed: number): (n: number) => number {
  let state = seed * 2654435761 + 1;
  return (n) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * n);
  };
}

function prose(seed: number, lines: number): string {
  const next = random(seed);
  return Array.from({ length: lines }, () => Array.from({ length: 8 }, () => words[next(words.length)]).join(' ')).join(
    '\n',
  );
}

const doc = (source: string, text: string): Document => ({ source, text: Buffer.from(text) });
const corpus = (n: number, lines = 40) => Array.from({ length: n }, (_, i) => doc(`${i}`, prose(i, lines)));
const names = (documents: readonly Document[]) => documents.map(({ source }) => source);

test('the split takes the wanted part, is disjoint, complete, and does not depend on the order', () => {
  const documents = corpus(400);
  const split = splitHeldOut(documents, { fraction: 0.02 });
  assert.equal(split.method, 'documents');
  assert.equal(split.train.length + split.heldOut.length, 400);
  const share = split.heldOutBytes / (split.heldOutBytes + split.trainBytes);
  assert.ok(share > 0.015 && share < 0.026, `${share}`);
  const held = new Set(names(split.heldOut));
  assert.ok(split.train.every(({ source }) => !held.has(source)));
  const shuffled = splitHeldOut([...documents].reverse(), { fraction: 0.02 });
  assert.deepEqual(new Set(names(shuffled.heldOut)), held);
  assert.notDeepEqual(new Set(names(splitHeldOut(documents, { fraction: 0.02, seed: 1 }).heldOut)), held);
});

test('growing the corpus moves few documents across', () => {
  const small = splitHeldOut(corpus(400), { fraction: 0.05 });
  const large = splitHeldOut(corpus(440), { fraction: 0.05 });
  const still = names(small.heldOut).filter((name) => names(large.heldOut).includes(name));
  assert.ok(still.length >= 0.7 * small.heldOut.length, `${still.length} of ${small.heldOut.length}`);
});

test('near-duplicates of a held-out document are on neither side', () => {
  const documents = corpus(300).flatMap((original) => {
    const lines = Buffer.from(original.text).toString().split('\n');
    const copy = lines.map((line, i) => (i % 4 === 0 ? `${line} changed` : `    ${line}`)).join('\r\n');
    return [original, doc(`${original.source}-copy`, copy)];
  });
  const split = splitHeldOut(documents, { fraction: 0.03 });
  assert.ok(split.heldOut.length >= 5);
  assert.equal(split.dropped, split.heldOut.length);
  const stems = new Set(names(split.heldOut).map((name) => name.replace('-copy', '')));
  assert.equal(stems.size, split.heldOut.length);
  assert.ok(names(split.train).every((name) => !stems.has(name.replace('-copy', ''))));
  assert.equal(split.overlap, 0);
  const naive = lineOverlap(documents.slice(1), documents.slice(0, 1));
  assert.ok(naive > 0.6 && naive < 0.9, `what a split by document would leak: ${naive}`);
});

test('clusters need shared lines, and boilerplate does not count', () => {
  const header = Array.from({ length: 6 }, (_, i) => `// licence text, line number ${i}, in every file`).join('\n');
  const plain = Array.from({ length: 40 }, (_, i) => doc(`${i}`, `${header}\n${prose(i, 10)}`));
  assert.equal(new Set(clusterByLines(plain)).size, 40);
  const pair = [...plain, doc('twin', prose(7, 10))];
  const groups = clusterByLines(pair);
  assert.equal(groups[40], groups[7]);
  assert.equal(new Set(groups).size, 40);
});

test('the size limit holds, and both sides are never empty', () => {
  const limited = splitHeldOut(corpus(400), { fraction: 0.2, maxBytes: 20_000 });
  assert.ok(limited.heldOutBytes <= 25_000 && limited.heldOutBytes > 10_000);
  for (const documents of [corpus(2, 500), corpus(1, 800), corpus(5, 200), [doc('line', 'word '.repeat(10_000))]]) {
    const split = splitHeldOut(documents);
    assert.ok(split.heldOutBytes > 0 && split.trainBytes > split.heldOutBytes);
    if (split.method === 'tail') {
      const total = documents.reduce((sum, { text }) => sum + text.length, 0);
      assert.equal(split.heldOutBytes + split.trainBytes, total);
    }
  }
});

test('a single long text is cut near its end, between lines or characters', () => {
  const split = splitHeldOut([doc('book', prose(3, 2000))], { fraction: 0.02 });
  assert.equal(split.method, 'tail');
  assert.equal(split.heldOut[0].source, 'book#tail');
  assert.equal(split.train[0].text.at(-1), 10);
  const wide = splitHeldOut([doc('wide', '€'.repeat(20_001))], { fraction: 0.02 });
  const strict = new TextDecoder('utf-8', { fatal: true });
  assert.equal(strict.decode(wide.train[0].text).length + strict.decode(wide.heldOut[0].text).length, 20_001);
});

test('a corpus that is too small is refused with a clear line', () => {
  assert.throws(
    () => splitHeldOut([doc('a', 'hello')]),
    (error) => error instanceof AnsatzError && /too small to train on: 5 bytes in 1 documents/.test(error.message),
  );
  assert.throws(() => splitHeldOut([]), AnsatzError);
});

test('compressors: sizes are plausible, xz falls back to brotli and says so', async () => {
  const documents = corpus(50);
  const real = await compressionBaselines(documents);
  assert.equal(
    real.textBytes,
    documents.reduce((sum, { text }) => sum + text.length, 0),
  );
  // Eight words a line out of 15, chosen uniformly: log2(15) bits a word is the entropy.
  const entropy = (50 * 40 * 8 * Math.log2(words.length)) / real.textBytes;
  for (const { bitsPerByte: bits, compressedBytes } of [real.gzip, real.strong]) {
    assert.ok(bits > entropy && bits < 2.2 * entropy, `${bits} against an entropy of ${entropy}`);
    assert.equal(bits, (8 * compressedBytes) / real.textBytes);
  }
  assert.ok(real.strong.bitsPerByte < real.gzip.bitsPerByte);
  const missing = await compressionBaselines(documents, '/nonexistent/xz');
  assert.match(missing.strong.name, /^brotli/);
  assert.equal(missing.note, 'xz is not installed');
  const failing = await compressionBaselines(documents, 'false');
  assert.match(failing.strong.name, /^brotli/);
  assert.match(failing.note ?? '', /^xz failed: /);
  assert.deepEqual({ ...failing.gzip, seconds: 0 }, { ...real.gzip, seconds: 0 });
  assert.equal(bitsPerByte(Math.LN2 * 24, 8), 3);
});
