import assert from 'node:assert/strict';
import { isUtf8 } from 'node:buffer';
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { AnsatzError } from '../../src/backend/errors.ts';
import { PACKAGES_CORPUS, readCorpus } from '../../src/data/corpus.ts';
import { countInvalidUtf8, cutText, looksLikeText } from '../../src/data/corpus-text.ts';

const scratch = mkdtempSync(join(tmpdir(), 'ansatz-corpus-'));
after(() => rmSync(scratch, { recursive: true, force: true }));
let folders = 0;

function folder(files: Record<string, string | Uint8Array>): string {
  const root = join(scratch, `f${folders++}`);
  mkdirSync(root);
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(root, name)), { recursive: true });
    writeFileSync(join(root, name), content);
  }
  return root;
}

const sources = async (...args: Parameters<typeof readCorpus>) =>
  (await readCorpus(...args)).documents.map((document) => document.source);

test('files come in bytewise order of their paths, whatever the creation order', async () => {
  const names = [
    'b/a.txt',
    'b.txt',
    'b-c.txt',
    'B.txt',
    'a/z/1.txt',
    'a/z.txt',
    'ä.txt',
    'z.txt',
    'a/é/2.txt',
    'a0.txt',
  ];
  const expected = [...names].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  const one = folder(Object.fromEntries(names.map((name) => [name, `text of ${name}`])));
  const two = folder(Object.fromEntries([...names].reverse().map((name) => [name, `text of ${name}`])));
  assert.deepEqual(await sources(one), expected);
  const [a, b] = [await readCorpus(one), await readCorpus(two)];
  assert.deepEqual(
    a.documents.map(({ source, hash }) => [source, hash]),
    b.documents.map(({ source, hash }) => [source, hash]),
  );
  assert.equal(a.report.fingerprint, b.report.fingerprint);
  writeFileSync(join(two, 'z.txt'), 'changed');
  assert.notEqual((await readCorpus(two)).report.fingerprint, a.report.fingerprint);
});

test('more files than are read ahead keep their order', async () => {
  const names = Array.from({ length: 150 }, (_, i) => `${String(i).padStart(4, '0')}.txt`);
  const root = folder(Object.fromEntries(names.map((name, i) => [name, `${i} ${'x'.repeat((i * 7919) % 5000)}`])));
  assert.deepEqual(await sources(root), names);
});

test('equal contents are kept once, the first path wins', async () => {
  const root = folder({ 'c.txt': 'same', 'a/x.txt': 'same', 'b.txt': 'other', 'd.txt': '\uFEFFsame' });
  const { documents, report } = await readCorpus(root);
  assert.deepEqual(
    documents.map(({ source }) => source),
    ['a/x.txt', 'b.txt'],
  );
  assert.equal(report.duplicates, 2);
});

test('binary, blank, hidden, linked and derived files are left out and counted; bytes are kept as they are', async () => {
  const latin1 = Buffer.from(
    'Die Stra\xdfe f\xfchrt \xfcber die gro\xdfe Br\xfccke und weiter durch das Tal.',
    'latin1',
  );
  const root = folder({
    'latin1.txt': latin1,
    'utf16.txt': Buffer.concat([Buffer.from([0xff, 0xfe]), Buffer.from('wide ß', 'utf16le')]),
    'zero.bin': Buffer.from('text\0more'),
    'noise.bin': Uint8Array.from({ length: 4096 }, (_, i) => 1 + ((i * i * 31 + i * 17) % 255)),
    'blank.txt': ' \n\t\n',
    'empty.txt': '',
    '.git/config': 'secret',
    '.env': 'secret',
    'bundle.js.map': '{"mappings": "AAAA"}',
    'lib.min.js': 'x()',
  });
  symlinkSync(root, join(root, 'cycle'));
  symlinkSync(join(root, 'latin1.txt'), join(root, 'link.txt'));
  const { documents, report } = await readCorpus(root);
  assert.deepEqual(
    documents.map(({ source }) => source),
    ['latin1.txt', 'utf16.txt'],
  );
  assert.deepEqual(Buffer.from(documents[0].text), latin1);
  assert.equal(Buffer.from(documents[1].text).toString(), 'wide ß');
  const { binary, empty, hidden, links, otherExtension } = report;
  assert.deepEqual(
    { binary, empty, hidden, links, otherExtension },
    { binary: 2, empty: 2, hidden: 2, links: 2, otherExtension: 2 },
  );
});

test('countInvalidUtf8 agrees with the platform on what is valid', () => {
  let state = 12345;
  const random = (n: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * n);
  };
  const starts = [0x41, 0xc1, 0xc3, 0xe0, 0xe2, 0xed, 0xef, 0xf0, 0xf3, 0xf4, 0xf5, 0x80, 0x9f, 0xa0, 0x8f, 0x90, 0xbf];
  let valid = 0;
  for (let i = 0; i < 20000; i++) {
    const bytes = Uint8Array.from({ length: 1 + random(4) }, () => starts[random(starts.length)]);
    const ok = isUtf8(bytes);
    assert.equal(countInvalidUtf8(bytes) === 0, ok, Buffer.from(bytes).toString('hex'));
    if (ok) valid++;
  }
  assert.ok(valid > 300, `${valid}`);
  assert.equal(looksLikeText(Buffer.from('caf\xe9 au lait', 'latin1')), true);
  assert.equal(looksLikeText(Buffer.from('\xff\xfe\xfd\xfc\xfb')), true, 'as UTF-8 these are letters');
  assert.equal(looksLikeText(Buffer.from('\xff\xfe\xfd\xfc\xfb', 'latin1')), false);
});

test('size limits cut deterministically, never inside a character', async () => {
  for (const limit of [5, 6, 7, 8, 9, 10]) {
    const cut = Buffer.from(cutText(Buffer.from('abc€€€€'), limit)).toString();
    assert.ok('abc€€€€'.startsWith(cut) && Buffer.byteLength(cut) > limit - 3, `${limit}: ${cut}`);
  }
  const line = 'twenty bytes a line.\n';
  const root = folder({ 'a.txt': line.repeat(100), 'b.txt': `b ${line.repeat(100)}`, 'c.txt': `c ${line}` });
  const limited = await readCorpus(root, { maxFileBytes: 500 });
  assert.equal(limited.report.cut, 2);
  assert.equal(Buffer.from(limited.documents[0].text).toString(), line.repeat(23));
  const capped = await readCorpus(root, { capBytes: 3000 });
  assert.deepEqual(
    capped.documents.map(({ source }) => source),
    ['a.txt', 'b.txt'],
  );
  assert.equal(capped.report.capped, true);
  assert.ok(capped.report.bytes <= 3000 && capped.report.bytes > 2900);
  assert.equal(capped.report.fingerprint, (await readCorpus(root, { capBytes: 3000 })).report.fingerprint);
});

test('a file longer than the read-ahead limit is read whole', async () => {
  const long = 'a line of a long book\n'.repeat(100_000);
  const { documents, report } = await readCorpus(folder({ 'a.txt': 'short', 'long.txt': long }));
  assert.equal(documents[1].text.length, long.length);
  assert.equal(report.cut, 0);
});

test('the packages profile takes sources and Markdown, skips one-line code, and finds licences', async () => {
  const root = folder({
    'p/package.json': '{"name": "p", "license": "MIT"}',
    'p/index.js': 'export const a = 1;\n',
    'p/deep/er/types.d.ts': 'export declare const a: number;\n',
    'p/bundle.js': `var a=1;${'f(a);'.repeat(2000)}\n`,
    'p/README.md': '# p\n',
    'p/data.json': '{}',
    'q/package.json': '{"name": "q", "license": "Apache-2.0"}',
    'q/index.mjs': 'export default 2;\n',
    'free.ts': 'export type A = 1;\n',
  });
  const { documents, report } = await readCorpus(root, PACKAGES_CORPUS);
  assert.deepEqual(
    documents.map(({ source, license }) => [source, license]),
    [
      ['free.ts', undefined],
      ['p/README.md', 'MIT'],
      ['p/deep/er/types.d.ts', 'MIT'],
      ['p/index.js', 'MIT'],
      ['q/index.mjs', 'Apache-2.0'],
    ],
  );
  assert.equal(report.minified, 1);
  assert.equal(report.otherExtension, 3);
  assert.equal(report.bytesByLicense['Apache-2.0'], 18);
});

test('records of .jsonl and .jsonl.gz files become documents; bad lines and damage are counted', async () => {
  const lines = [
    '{"text": "first", "license": "CC0-1.0"}',
    '',
    '{"text": "s\\u00e9cond"}',
    'not json',
    '{"body": 1}',
    '{"text": "last"}',
  ];
  const many = Array.from({ length: 5000 }, (_, i) =>
    JSON.stringify({ text: `record ${i} ${'y'.repeat(i % 300)}` }),
  ).join('\n');
  const packed = gzipSync(many);
  const root = folder({
    'a.jsonl': lines.join('\n'),
    'b.jsonl.gz': packed,
    'c.jsonl.gz': gzipSync(many.replaceAll('record', 'broken')).subarray(0, packed.length >> 1),
    'd.txt.gz': gzipSync('packed text'),
  });
  const { documents, report } = await readCorpus(root);
  assert.deepEqual(
    documents.slice(0, 3).map(({ text, source, license }) => [Buffer.from(text).toString(), source, license]),
    [
      ['first', 'a.jsonl:1', 'CC0-1.0'],
      ['sécond', 'a.jsonl:3', undefined],
      ['last', 'a.jsonl:6', undefined],
    ],
  );
  assert.equal(documents.filter(({ source }) => source.startsWith('b.')).length, 5000);
  assert.equal(Buffer.from(documents[3 + 4999].text).toString(), `record 4999 ${'y'.repeat(4999 % 300)}`);
  assert.ok(documents.some(({ source }) => source.startsWith('c.')));
  assert.equal(Buffer.from(documents[documents.length - 1].text).toString(), 'packed text');
  assert.ok(report.badRecords >= 2 && report.badRecords <= 3, 'the line cut off by the damage may count');
  assert.equal(report.unreadable, 1);
  assert.deepEqual(
    await sources(join(root, 'a.jsonl'), { textField: 'body' }).catch((error) => error.name),
    'AnsatzError',
  );
  assert.deepEqual(await sources([join(root, 'a.jsonl'), join(root, 'd.txt.gz')], { capBytes: 1000 }), [
    'a.jsonl/a.jsonl:1',
    'a.jsonl/a.jsonl:3',
    'a.jsonl/a.jsonl:6',
    'd.txt.gz/d.txt.gz',
  ]);
});

async function message(promise: Promise<unknown>): Promise<string> {
  const error = await promise.then(
    () => assert.fail('no error'),
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof AnsatzError, String(error));
  assert.ok(error.hint && !`${error.message}${error.hint}`.includes('\n'));
  return error.message;
}

test('an empty folder, only binary files, or a missing path give one clear line', async () => {
  assert.match(await message(readCorpus(folder({}))), /^no text found in .*: there are no files$/);
  assert.match(await message(readCorpus(folder({ a: '\0\0', b: '' }))), /^no text found in .*: 1 binary, 1 empty$/);
  assert.match(
    await message(readCorpus(join(scratch, 'nowhere'))),
    /^cannot read text from .*nowhere: there is no such/,
  );
  const file = folder({ 'a.txt': 'x' });
  assert.match(await message(readCorpus(join(file, 'a.txt', 'b'))), /there is no such/);
  assert.match(await message(readCorpus(folder({ 'x.bin': '\0' }).concat('/x.bin'))), /1 binary/);
  assert.match(await message(readCorpus('/dev/null')), /neither a folder nor a regular file/);
});

test('unreadable files and folders are counted, an unreadable root is refused', async () => {
  const root = folder({ 'good.txt': 'good', 'locked.txt': 'x', 'sub/x.txt': 'x', 'many.jsonl': '{"text": "x"}' });
  for (const name of ['locked.txt', 'sub', 'many.jsonl']) chmodSync(join(root, name), 0);
  chmodSync(scratch, 0o755);
  const closed = folder({ 'x.txt': 'x' });
  chmodSync(closed, 0);
  // Permissions do not bind root: step down to an ordinary user for this test.
  const isRoot = process.geteuid?.() === 0;
  if (isRoot) process.seteuid?.(65534);
  try {
    const { documents, report } = await readCorpus(root);
    assert.deepEqual(
      documents.map(({ source }) => source),
      ['good.txt'],
    );
    assert.equal(report.unreadable, 3);
    assert.match(await message(readCorpus(closed)), /permission denied$/);
  } finally {
    if (isRoot) process.seteuid?.(0);
    for (const path of [closed, join(root, 'sub')]) chmodSync(path, 0o755);
  }
});

test('progress is reported and ends with the totals', async () => {
  const root = folder(Object.fromEntries(Array.from({ length: 200 }, (_, i) => [`${i}.txt`, `text ${i}`])));
  const seen: number[] = [];
  const { report } = await readCorpus(root, { onProgress: ({ files }) => seen.push(files) });
  assert.deepEqual(seen, [64, 128, 192, 200]);
  assert.equal(report.files, 200);
});
