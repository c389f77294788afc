import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { AnsatzError } from '../../src/backend/errors.ts';
import { type AnyArray, SafetensorsFile, type TensorSource, writeSafetensors } from '../../src/train/safetensors.ts';

const folder = mkdtempSync(join(tmpdir(), 'ansatz-safetensors-'));
after(() => rmSync(folder, { recursive: true, force: true }));
const at = (name: string) => join(folder, name);

/** A file made by hand from the format's description, not by the code under test. */
function handmade(name: string, header: unknown, data: Uint8Array | number = 0, length?: bigint): string {
  const text = typeof header === 'string' ? header : JSON.stringify(header);
  const json = header instanceof Buffer ? header : Buffer.from(text);
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(length ?? BigInt(json.byteLength));
  writeFileSync(at(name), Buffer.concat([prefix, json, typeof data === 'number' ? Buffer.alloc(data) : data]));
  return at(name);
}

function source(name: string, dtype: TensorSource['dtype'], shape: number[], array: ArrayBufferView): TensorSource {
  return { name, dtype, shape, data: () => array };
}

test('every dtype survives a round trip, bit for bit', async () => {
  const cases: [string, TensorSource['dtype'], number[], AnyArray][] = [
    ['f32', 'F32', [2, 3], new Float32Array([1, -0, Number.NaN, Number.POSITIVE_INFINITY, 1e-40, 3.14])],
    ['bf16', 'BF16', [4], new Uint16Array([0x3f80, 0x8000, 0x7fc0, 0xffff])],
    ['f16', 'F16', [1, 1, 2], new Uint16Array([0x3c00, 0x7e01])],
    ['i32', 'I32', [], new Int32Array([-(2 ** 31)])],
    ['i64', 'I64', [2], new BigInt64Array([-(2n ** 63n), 2n ** 53n + 1n])],
    ['u8', 'U8', [3], new Uint8Array([0, 128, 255])],
    ['u32', 'U32', [1], new Uint32Array([2 ** 32 - 1])],
    ['empty', 'F32', [0, 7], new Float32Array(0)],
    ['ünï "quoted"\n', 'U8', [1], new Uint8Array([7])],
    ['7', 'U8', [1], new Uint8Array([9])],
  ];
  const path = at('all.safetensors');
  const sources = cases.map(([name, dtype, shape, array]) => source(name, dtype, shape, array));
  const written = await writeSafetensors(path, sources, { format: 'test', note: 'a\nb' });
  const raw = readFileSync(path);
  assert.equal(written.bytes, raw.byteLength);
  assert.equal(written.sha256, createHash('sha256').update(raw).digest('hex'));
  const file = await SafetensorsFile.open(path);
  assert.deepEqual(file.metadata, { format: 'test', note: 'a\nb' });
  assert.deepEqual(new Set(file.names), new Set(cases.map(([name]) => name)));
  for (const [name, dtype, shape, array] of cases) {
    const info = file.info(name);
    assert.deepEqual([info.dtype, info.shape, info.bytes], [dtype, shape, array.byteLength]);
    assert.equal(info.offset % array.BYTES_PER_ELEMENT, 0, `${name} is aligned`);
    const back = await file.read(name);
    assert.equal(back.constructor, array.constructor);
    assert.deepEqual(Buffer.from(back.buffer), Buffer.from(array.buffer, array.byteOffset, array.byteLength));
  }
  await file.close();
});

test('the bytes are those of the format: length, padded JSON in sorted order, data without holes', async () => {
  const path = at('exact.safetensors');
  await writeSafetensors(path, [
    source('b', 'U8', [1], new Uint8Array([5])),
    source('z', 'F32', [1], new Float32Array([1])),
    source('a', 'F32', [1], new Float32Array([2])),
  ]);
  const raw = readFileSync(path);
  const length = Number(raw.readBigUInt64LE(0));
  assert.equal(length % 8, 0);
  const text = raw.toString('utf8', 8, 8 + length);
  assert.equal(
    text.trimEnd(),
    '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' +
      '"z":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},"b":{"dtype":"U8","shape":[1],"data_offsets":[8,9]}}',
  );
  assert.equal(raw.subarray(8 + length).toString('hex'), '000000400000803f05');
});

test('a handmade file is read; parts of a tensor can be read; views into larger buffers are written right', async () => {
  const data = Buffer.from(new Float32Array([1, 2, 3, 4, 5, 6]).buffer);
  const file = await SafetensorsFile.open(
    handmade('ok', { w: { dtype: 'F32', shape: [3, 2], data_offsets: [0, 24] } }, data),
  );
  const row = new Float32Array(2);
  await file.readInto('w', row, 8);
  assert.deepEqual([...row], [3, 4]);
  await assert.rejects(file.readInto('w', row, 20), AnsatzError);
  await assert.rejects(file.readAs('w', 'BF16'), /"w" is F32, expected BF16/);
  await assert.rejects(file.read('layers.9.w'), /has no tensor "layers.9.w"; it has w/);
  await file.close();

  await writeSafetensors(at('view'), [source('v', 'F32', [2], new Float32Array([9, 1, 2, 9]).subarray(1, 3))]);
  const view = await SafetensorsFile.open(at('view'));
  assert.deepEqual(await view.readAs('v', 'F32'), new Float32Array([1, 2]));
  await view.close();
});

test('tensors are pulled one at a time, in file order, and a larger one than a slice arrives whole', async () => {
  const calls: string[] = [];
  let open = 0;
  const slow = (name: string, elements: number): TensorSource => ({
    name,
    dtype: 'U32',
    shape: [elements],
    data: async () => {
      assert.equal(open++, 0, 'the one before must be done');
      calls.push(name);
      await new Promise((resolve) => setTimeout(resolve, 2));
      open--;
      return Uint32Array.from({ length: elements }, (_, k) => Math.imul(k, 2654435761) >>> 0);
    },
  });
  await writeSafetensors(at('big'), [slow('b', 5_000_001), slow('a', 3)]);
  assert.deepEqual(calls, ['a', 'b']);
  const file = await SafetensorsFile.open(at('big'));
  const back = await file.readAs('b', 'U32');
  assert.equal(back.length, 5_000_001);
  assert.ok(back.every((value, k) => value === Math.imul(k, 2654435761) >>> 0));
  await file.close();
});

test('writing refuses wrong sizes, repeated names and impossible shapes', async () => {
  const f32 = new Float32Array(3);
  await assert.rejects(writeSafetensors(at('x'), [source('a', 'F32', [4], f32)]), /"a" .* needs 16 bytes, .* 12/);
  await assert.rejects(
    writeSafetensors(at('x'), [source('a', 'F32', [3], f32), source('a', 'F32', [3], f32)]),
    /"a" is used twice/,
  );
  await assert.rejects(writeSafetensors(at('x'), [source('a', 'F32', [-3], f32)]), /impossible shape/);
  await assert.rejects(writeSafetensors(at('x'), [source('__metadata__', 'F32', [3], f32)]), /used twice/);
});

test('each kind of bad file gives one clear line that names the file', async () => {
  const f = (begin: number, end: number, shape: unknown = [1], dtype: unknown = 'F32') => ({
    dtype,
    shape,
    data_offsets: [begin, end],
  });
  writeFileSync(at('short'), 'abc');
  const cases: [string, string, RegExp][] = [
    ['short', at('short'), /only 3 bytes/],
    ['huge header', handmade('huge', '{}', 0, 2n ** 60n), /declares a header of 1152921504606846976 bytes/],
    ['long header', handmade('long', '{}', 0, 100n), /declares a header of 100 bytes but has 10/],
    ['no JSON', handmade('nojson', '{"a":'), /header is not JSON/],
    ['no UTF-8', handmade('utf8', Buffer.from('{"\xff":1}', 'latin1')), /header is not JSON/],
    ['an array', handmade('array', '[]'), /not a JSON object/],
    ['leading space', handmade('space', ' {}'), /not a JSON object/],
    ['duplicate', handmade('dup', `{"a":${JSON.stringify(f(0, 4))},"a":${JSON.stringify(f(0, 4))}}`, 4), /"a" twice/],
    [
      'escaped duplicate',
      handmade('dup2', `{"a":${JSON.stringify(f(0, 4))},"\\u0061":${JSON.stringify(f(0, 4))}}`, 4),
      /"a" twice/,
    ],
    ['metadata', handmade('meta', { __metadata__: { a: 1 } }), /__metadata__ is not a map of strings/],
    ['dtype', handmade('dtype', { a: f(0, 4, [1], 'F33') }, 4), /unknown dtype "F33"/],
    ['prototype dtype', handmade('proto', { a: f(0, 4, [1], 'constructor') }, 4), /unknown dtype/],
    ['shape', handmade('shape', { a: f(0, 4, [1.5]) }, 4), /impossible shape \[1.5\]/],
    ['negative shape', handmade('neg', { a: f(0, 4, [-1]) }, 4), /impossible shape/],
    ['overflow', handmade('over', { a: f(0, 4, [2 ** 30, 2 ** 30]) }, 4), /impossible shape/],
    ['offsets', handmade('offs', { a: f(-4, 0) }, 4), /impossible offsets/],
    ['three offsets', handmade('offs3', { a: { dtype: 'F32', shape: [1], data_offsets: [0, 4, 8] } }, 4), /offsets/],
    ['size', handmade('size', { a: f(0, 4, [2]) }, 4), /needs 8 bytes but its offsets hold 4/],
    ['outside', handmade('out', { a: f(0, 8, [2]) }, 4), /ends at byte 8 of 4 \(truncated\?\)/],
    ['overlap', handmade('lap', { a: f(0, 8, [2]), b: f(4, 8) }, 8), /"b" overlaps/],
    ['same place', handmade('same', { a: f(0, 4), b: f(0, 4) }, 4), /overlaps/],
    ['hole', handmade('hole', { a: f(0, 4), b: f(8, 12) }, 12), /hole of 4 bytes before tensor "b"/],
    ['trailing', handmade('trail', { a: f(0, 4) }, 6), /2 bytes after its last tensor/],
    ['entry', handmade('entry', { a: 5 }), /entry of "a" is not an object/],
    ['directory', folder, /not a regular file/],
    ['absent', at('absent'), /cannot be opened \(ENOENT\)/],
  ];
  for (const [what, path, pattern] of cases) {
    await assert.rejects(SafetensorsFile.open(path), (error: unknown) => {
      assert.ok(error instanceof AnsatzError, `${what}: ${error}`);
      assert.match(error.message, pattern, what);
      assert.ok(error.message.startsWith(path) && !error.message.includes('\n'), `${what}: ${error.message}`);
      return true;
    });
  }
});

test('a cut file is always refused; a flipped header bit is refused or harmless, and never anything but one clear line', async () => {
  const path = at('fuzz');
  await writeSafetensors(path, [
    source('a', 'F32', [2], new Float32Array([1, 2])),
    source('b', 'U8', [3], new Uint8Array([1, 2, 3])),
  ]);
  const good = readFileSync(path);
  for (let length = 0; length < good.byteLength; length++) {
    writeFileSync(at('cut'), good.subarray(0, length));
    await assert.rejects(SafetensorsFile.open(at('cut')), AnsatzError, `cut to ${length}`);
  }
  const headerEnd = 8 + Number(good.readBigUInt64LE(0));
  for (let byte = 0; byte < headerEnd; byte++) {
    for (const bit of [0, 3, 5, 7]) {
      const bad = Buffer.from(good);
      bad[byte] ^= 1 << bit;
      writeFileSync(at('flip'), bad);
      // Some flips only rename a tensor or change a dtype to one of the same size; all others must be refused, and
      // none may throw anything but an AnsatzError or lay tensors outside the file.
      try {
        const file = await SafetensorsFile.open(at('flip'));
        for (const name of file.names) await file.read(name);
        await file.close();
      } catch (error) {
        assert.ok(error instanceof AnsatzError, `byte ${byte} bit ${bit}: ${error}`);
      }
    }
  }
});
