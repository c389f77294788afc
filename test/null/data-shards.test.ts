import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { AnsatzError } from '../../src/backend/errors.ts';
import { openTokens, writeShards } from '../../src/data/shards.ts';
import { decodeHeader, encodeHeader, HEADER_BYTES } from '../../src/data/shards-format.ts';
import type { Document, DocumentEncoder } from '../../src/data/types.ts';

const scratch = mkdtempSync(join(tmpdir(), 'ansatz-shards-'));
after(() => rmSync(scratch, { recursive: true, force: true }));
let folders = 0;
const newFolder = () => join(scratch, `f${folders++}`, 'deep');

/** Bytes as tokens, shifted to the top of the vocabulary so that both widths are exercised. */
function byteEncoder(vocabSize: number): DocumentEncoder {
  const encode = (text: Uint8Array) => Int32Array.from(text, (byte) => vocabSize - 257 + byte);
  return { vocabSize, eot: vocabSize - 1, encodeBatch: (docs) => docs.map(encode) };
}

const tokenizerHash = createHash('sha256').update('tokenizer').digest('hex');
const otherHash = createHash('sha256').update('another').digest('hex');
const documents: Document[] = Array.from({ length: 60 }, (_, i) => ({
  text: Buffer.from(`document ${i} ${'z'.repeat((i * 37) % 100)}`),
  source: `${i}.txt`,
  license: i % 2 ? 'MIT' : undefined,
}));
const expected = documents.flatMap(({ text }) => [...text, 256]);

const write = (folder: string, vocabSize = 1000, shardTokens = 500, docs = documents) =>
  writeShards(docs, byteEncoder(vocabSize), {
    folder,
    name: 'train',
    tokenizerHash,
    shardTokens,
    source: { from: 'test' },
  });

function failure(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    assert.ok(error instanceof AnsatzError, String(error));
    assert.ok(error.hint && !`${error.message}${error.hint}`.includes('\n'));
    return error.message;
  }
  assert.fail('no error');
}

for (const vocabSize of [1000, 65536, 65537, 200_000]) {
  for (const access of ['memory', 'file'] as const) {
    test(`what is written is read: vocabulary ${vocabSize}, access by ${access}`, async () => {
      const folder = newFolder();
      const manifest = await write(folder, vocabSize);
      assert.ok(manifest.shards.length > 5);
      const data = openTokens(folder, 'train', { access, tokenizerHash });
      const base = vocabSize - 257;
      assert.equal(data.tokenCount, expected.length);
      const all = new Int32Array(expected.length + 2);
      data.read(0, data.tokenCount, all, 1);
      assert.deepEqual(
        [...all.subarray(1, -1)],
        expected.map((token) => token + base),
      );
      assert.deepEqual([all[0], all[all.length - 1]], [0, 0]);
      for (let start = 0; start < data.tokenCount; start += 97) {
        const count = Math.min(211, data.tokenCount - start);
        const out = new Int32Array(count);
        data.read(start, count, out, 0);
        assert.deepEqual(out, all.slice(1 + start, 1 + start + count));
      }
      documents.forEach(({ text }, d) => {
        assert.equal(data.docStarts[d + 1] - data.docStarts[d], text.length + 1);
        assert.equal(data.docBytes[d], text.length);
      });
      assert.equal(
        data.textBytes,
        documents.reduce((sum, { text }) => sum + text.length, 0),
      );
      assert.equal(data.documentCount, 60);
      assert.throws(() => data.read(data.tokenCount - 1, 2, all, 0), RangeError);
      const [first] = manifest.shards;
      const bytes = readFileSync(join(folder, first.file));
      const width = vocabSize <= 65536 ? 2 : 4;
      assert.equal(bytes.readUInt32LE(16), width);
      assert.equal(bytes.length, 128 + Math.ceil((first.tokens * width) / 8) * 8 + 8 * (3 * first.documents + 1));
      data.close();
      if (access === 'file') assert.throws(() => data.read(0, 1, all, 0), /is closed/);
    });
  }
}

test('the manifest, the provenance and the files are reproducible', async () => {
  const [a, b] = [newFolder(), newFolder()];
  const manifest = await write(a);
  await write(b);
  assert.deepEqual(readdirSync(a).sort(), readdirSync(b).sort());
  for (const file of readdirSync(a)) assert.deepEqual(readFileSync(join(a, file)), readFileSync(join(b, file)), file);
  assert.ok(readdirSync(a).every((file) => !file.endsWith('.tmp')));
  const lines = readFileSync(join(a, manifest.provenance), 'utf8').trim().split('\n');
  const records = lines.map((line) => JSON.parse(line));
  assert.equal(records.length, 60);
  assert.equal(records[59].source, '59.txt');
  assert.equal(records[59].license, 'MIT');
  assert.equal(records[59].shard, manifest.shards.length - 1);
  assert.equal(records[59].index, manifest.shards[manifest.shards.length - 1].documents - 1);
  assert.equal(
    records.reduce((sum, { tokens }) => sum + tokens, 0),
    manifest.tokens,
  );
  assert.deepEqual(manifest.source, { from: 'test' });
});

test('the asynchronous encoder is preferred, and special tokens are always read as text', async () => {
  const seen: unknown[] = [];
  const { vocabSize, eot, encodeBatch } = byteEncoder(1000);
  const encoder: DocumentEncoder = {
    vocabSize,
    eot,
    encodeBatch: () => assert.fail('not this one'),
    encodeBatchAsync: async (docs, opts) => {
      seen.push(opts);
      return encodeBatch(docs);
    },
  };
  const options = { name: 'train', tokenizerHash, shardTokens: 500 };
  const a = await writeShards(documents, encoder, { folder: newFolder(), ...options });
  const b = await write(newFolder());
  assert.equal(a.fingerprint, b.fingerprint);
  assert.deepEqual(seen, [{ special: 'text' }]);
});

test('writing again replaces the data set and removes what it no longer needs', async () => {
  const folder = newFolder();
  const before = await write(folder);
  // Neither a user's file, nor another data set's, nor what another writer is just writing may go.
  const foreign = ['train-notes.txt', 'train-2-00000-01234567.tokens', 'train-00000-01234567.tokens'];
  for (const name of foreign) writeFileSync(join(folder, name), 'not ours');
  const abandoned = ['train-00001-01234567.tokens', 'train-00001-01234567.tokens.12-89abcdef.tmp'];
  for (const name of abandoned) {
    writeFileSync(join(folder, name), 'left by a killed writer');
    utimesSync(join(folder, name), 1e9, 1e9);
  }
  const after_ = await write(folder, 1000, 500, documents.slice(0, 20));
  assert.notEqual(after_.fingerprint, before.fingerprint);
  assert.equal(openTokens(folder, 'train').documentCount, 20);
  const kept = [...after_.shards.map(({ file }) => file), after_.provenance, 'train.json', ...foreign];
  assert.deepEqual(readdirSync(folder).sort(), kept.sort());
});

test('a writer that fails half-way leaves the old data set whole', async () => {
  const folder = newFolder();
  await write(folder);
  const broken: DocumentEncoder = {
    vocabSize: 1000,
    eot: 999,
    encodeBatch: (docs) => docs.map((_, i) => Int32Array.of(i < 40 ? 5 : 1000)),
  };
  const options = { folder, name: 'train', tokenizerHash, shardTokens: 8 };
  await assert.rejects(
    writeShards(documents, broken, options),
    /token 1000 in 40.txt is outside the vocabulary of 1000/,
  );
  const data = openTokens(folder, 'train');
  assert.equal(data.tokenCount, expected.length);
  const out = new Int32Array(data.tokenCount);
  data.read(0, data.tokenCount, out, 0);
  assert.deepEqual(
    [...out],
    expected.map((token) => token + 743),
  );
});

test('a writer killed at any moment leaves a data set that opens', async () => {
  const folder = newFolder();
  await write(folder);
  const script = `
    import { writeShards } from ${JSON.stringify(new URL('../../src/data/shards.ts', import.meta.url).href)};
    const encoder = { vocabSize: 300, eot: 299, encodeBatch: (docs) => docs.map((text) => Int32Array.from(text)) };
    const options = { folder: ${JSON.stringify(folder)}, name: 'train', tokenizerHash: '${tokenizerHash}', shardTokens: 400 };
    for (let round = 0; ; round++) {
      const documents = Array.from({ length: 50 }, (_, i) => ({ text: Buffer.from('round ' + round + ' ' + i), source: '' }));
      await writeShards(documents, encoder, options);
      if (round === 0) console.log('started');
    }`;
  for (const delay of [1, 7, 20]) {
    const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '--eval', script], {
      cwd: new URL('../..', import.meta.url),
    });
    await Promise.race([
      once(child.stdout, 'data'),
      once(child, 'exit').then(() => assert.fail(`the writer did not start: ${child.stderr.read()}`)),
    ]);
    await new Promise((resolve) => setTimeout(resolve, delay));
    child.kill('SIGKILL');
    const [status, signal] = await once(child, 'exit');
    assert.deepEqual([status, signal], [null, 'SIGKILL'], 'the writer was still at work');
    const data = openTokens(folder, 'train');
    assert.equal(data.documentCount, 50);
    const out = new Int32Array(data.tokenCount);
    data.read(0, data.tokenCount, out, 0);
    const texts = Array.from({ length: 50 }, (_, d) =>
      Buffer.from(out.subarray(data.docStarts[d], data.docStarts[d + 1] - 1)).toString(),
    );
    const [round] = /round \d+ /.exec(texts[0]) ?? [''];
    assert.deepEqual(
      texts,
      texts.map((_, i) => `${round}${i}`),
      'all of one round',
    );
  }
});

test('damaged files are recognised, each with one line that names the file', async () => {
  const folder = newFolder();
  const manifest = await write(folder);
  const path = join(folder, manifest.shards[1].file);
  const good = readFileSync(path);
  const open = (access: 'memory' | 'file') => () => openTokens(folder, 'train', { access }).close();
  const broken = (bytes: Uint8Array, pattern: RegExp) => {
    writeFileSync(path, bytes);
    for (const access of ['memory', 'file'] as const) {
      const text = failure(open(access));
      assert.match(text, pattern);
      assert.ok(text.includes(manifest.shards[1].file));
    }
  };
  const changed = (at: number) => {
    const copy = Buffer.from(good);
    copy[at] ^= 0x40;
    return copy;
  };
  for (const length of [good.length - 1, 200, 128]) broken(good.subarray(0, length), /truncated: \d+ of \d+ bytes$/);
  broken(good.subarray(0, 60), /truncated: 60 bytes/);
  broken(good.subarray(0, 0), /the file is empty$/);
  broken(Buffer.concat([good, Buffer.from('x')]), /1 bytes too many$/);
  broken(changed(0), /not a token shard/);
  broken(changed(8), /format version is 65, this program reads 1$/);
  for (const at of [20, 33, 70, 125]) broken(changed(at), /header is damaged$/);
  for (const at of [128, 700, good.length - 1]) broken(changed(at), /checksum does not match/);
  broken(readFileSync(join(folder, manifest.shards[0].file)), /not the one that train.json lists/);
  const header = decodeHeader(good.subarray(0, HEADER_BYTES), good.length, path);
  broken(
    Buffer.concat([encodeHeader({ ...header, tokenizerHash: otherHash }), good.subarray(128)]),
    /made with tokenizer/,
  );
  rmSync(path);
  assert.match(failure(open('memory')), /the file is missing$/);
  writeFileSync(path, good);
  open('memory')();
});

test('another tokenizer, a missing or damaged manifest are refused', async () => {
  const folder = newFolder();
  await write(folder);
  const wrong = failure(() => openTokens(folder, 'train', { tokenizerHash: otherHash }));
  assert.match(wrong, /was made with tokenizer [0-9a-f]{12}, this run uses [0-9a-f]{12}$/);
  assert.match(
    failure(() => openTokens(folder, 'test')),
    /test\.json: no such file$/,
  );
  const path = join(folder, 'train.json');
  for (const content of [
    '{"format": "ansatz-tokens"',
    '[]',
    'null',
    '{}',
    '{"format":"ansatz-tokens","version":1,"shards":[{}]}',
  ]) {
    writeFileSync(path, content);
    assert.match(
      failure(() => openTokens(folder, 'train')),
      /not valid JSON|not a manifest of version 1/,
    );
  }
});

test('an output folder that cannot be written gives one line', async () => {
  writeFileSync(join(scratch, 'file'), '');
  await assert.rejects(write(join(scratch, 'file', 'sub')), (error) => {
    assert.ok(error instanceof AnsatzError);
    assert.match(error.message, /^cannot write .*sub: /);
    return true;
  });
});
