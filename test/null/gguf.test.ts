// GGUF files: halves, ggml's block formats byte for byte, and the layout of what is written.
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { AnsatzError } from '../../src/backend/errors.ts';
import { fromBfloats, fromHalves, halfBits, halfValue, toBfloats, toHalves } from '../../src/infer/formats/floats.ts';
import { quantiseQ4_0, quantiseQ8_0 } from '../../src/infer/formats/ggml-blocks.ts';
import { type GgufTensor, type GgufValue, writeGguf } from '../../src/infer/formats/gguf.ts';
import { madeWhole } from '../../src/infer/formats/place.ts';
import { dequantised, readGguf } from '../support/gguf-read.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { temporaryFolder } from '../support/tiny-data.ts';

describe('halves', () => {
  test('every half is its own nearest', () => {
    for (let h = 0; h < 0x10000; h++)
      if (!Number.isNaN(halfValue(h))) assert.equal(halfBits(halfValue(h)), h, h.toString(16));
  });

  test('a number between two goes to the nearer, from the middle to the even one', () => {
    for (let h = 0; h < 0x7c00; h++) {
      const [low, high] = [halfValue(h), h === 0x7bff ? 65536 : halfValue(h + 1)];
      const middle = (low + high) / 2; // has one bit more than a half: exact in f32
      assert.equal(halfBits(middle), h % 2 ? h + 1 : h, `${middle}`);
      assert.equal(halfBits(-middle), 0x8000 | (h % 2 ? h + 1 : h));
      const third = low + (high - low) / 3;
      assert.equal(halfBits(third), h);
      assert.equal(halfBits(high - (high - low) / 3), h + 1);
    }
  });

  test('NaN, infinities, and what is too large or too small', () => {
    assert.ok(Number.isNaN(halfValue(halfBits(Number.NaN))));
    const cases: [number, number][] = [
      [Infinity, Infinity],
      [-Infinity, -Infinity],
      [65519, 65504],
      [65520, Infinity],
      [1e30, Infinity],
      [2 ** -25, 0],
      [2 ** -25 * 1.0001, 2 ** -24],
      [-0, -0],
    ];
    for (const [x, y] of cases) assert.equal(halfValue(halfBits(x)), y, `${x}`);
  });

  test('arrays; bfloat16 rounds to even and comes back as it was', () => {
    const x = Float32Array.of(1, -2.5, 0, 1 + 2 ** -8, 1 + 3 * 2 ** -8, Number.NaN, -Infinity, 3.4e38);
    assert.deepEqual([...toBfloats(x)].slice(0, 5), [0x3f80, 0xc020, 0, 0x3f80, 0x3f82]);
    const back = fromBfloats(toBfloats(x));
    assert.ok(Number.isNaN(back[5]) && back[6] === -Infinity && back[7] === Infinity);
    assert.deepEqual(fromBfloats(toBfloats(back)), back);
    const halves = fromHalves(toHalves(x));
    assert.deepEqual([...halves.slice(0, 3)], [1, -2.5, 0]);
  });
});

const block = (...first: number[]): Float32Array => Float32Array.from({ length: 32 }, (_, k) => first[k] ?? 0);

describe('block formats', () => {
  test('Q8_0: a scale that makes the largest 127, halves away from zero', () => {
    const bytes = quantiseQ8_0(block(127, 0.5, -0.5, 2.5, -2.5, 0.4999, -127, 1));
    assert.deepEqual([...bytes.slice(0, 2)], [0x00, 0x3c], 'f16 1.0, little-endian');
    assert.deepEqual([...new Int8Array(bytes.buffer, 2, 9)], [127, 1, -1, 3, -3, 0, -127, 1, 0]);
    assert.equal(bytes.length, 34);
  });

  test('Q4_0: the value largest in magnitude becomes -8 with its sign, nibbles are halves of a block apart', () => {
    const x = block(-8, 7, 7.6, 0.5, -0.5, 0.49, -7.4, 3);
    x[16] = 2;
    x[31] = -3;
    const bytes = quantiseQ4_0(x);
    assert.deepEqual([...bytes.slice(0, 2)], [0x00, 0x3c]);
    const low = [...bytes.slice(2)].map((b) => b & 15);
    const high = [...bytes.slice(2)].map((b) => b >> 4);
    assert.deepEqual(low.slice(0, 9), [0, 15, 15, 9, 8, 8, 1, 11, 8]);
    assert.deepEqual([high[0], high[1], high[15]], [10, 8, 5]);
    assert.equal(bytes.length, 18);
    assert.deepEqual([...quantiseQ4_0(block(8)).slice(0, 3)], [0x00, 0xbc, 0x80], 'a positive largest: d = -1');
  });

  test('zeros', () => {
    assert.deepEqual([...quantiseQ8_0(block())], new Array(34).fill(0));
    assert.deepEqual([...quantiseQ4_0(block())], [0x00, 0x80, ...new Array(16).fill(0x88)], 'd is -0, as in ggml');
  });

  const noise = Float32Array.from(
    { length: 32 * 4096 },
    (() => {
      const rng = new Rng('blocks');
      return () => rng.normal();
    })(),
  );
  for (const [name, quantise, type, rms] of [
    ['Q8_0', quantiseQ8_0, 8, 0.0054],
    ['Q4_0', quantiseQ4_0, 2, 0.086],
  ] as const)
    test(`${name}: errors within half a step, of the published size`, () => {
      const back = dequantised(type, Buffer.from(quantise(noise)));
      assert.equal(back.length, noise.length);
      let [error, size] = [0, 0];
      for (let b = 0; b < noise.length; b += 32) {
        const values = [...noise.subarray(b, b + 32)];
        const most = Math.max(...values.map(Math.abs));
        const step = type === 8 ? most / 127 : most / 8;
        values.forEach((v, k) => {
          const off = Math.abs(v - back[b + k]);
          const clipped = type === 2 && Math.abs(v) > 7 * step; // the end opposite to the largest
          assert.ok(off <= (clipped ? 1 : 0.5) * step + 2 ** -10 * most, `${v} became ${back[b + k]}`);
          error += off * off;
          size += v * v;
        });
      }
      const relative = Math.sqrt(error / size);
      assert.ok(Math.abs(relative / rms - 1) < 0.05, `${relative}`);
    });

  test('quantising twice changes nothing', () => {
    for (const [quantise, type] of [
      [quantiseQ8_0, 8],
      [quantiseQ4_0, 2],
    ] as const) {
      const once = quantise(noise);
      assert.deepEqual(quantise(Float32Array.from(dequantised(type, Buffer.from(once)))), once);
    }
  });
});

describe('files', () => {
  const folder = temporaryFolder('gguf');
  const metadata = new Map<string, GgufValue>([
    ['general.architecture', { type: 'string', value: 'llama' }],
    ['a.number', { type: 'u32', value: 4294967295 }],
    ['a.real', { type: 'f32', value: 0.5 }],
    ['a.flag', { type: 'bool', value: true }],
    ['some.texts', { type: 'strings', value: ['', 'ü', 'a b'] }],
    ['some.numbers', { type: 'i32s', value: [-1, 2] }],
  ]);

  test('metadata, dimensions, alignment and values come back', async () => {
    const asked: string[] = [];
    const values = (name: string, n: number) => async () => {
      asked.push(name);
      return Float32Array.from({ length: n }, (_, k) => k - 8);
    };
    const tensors: GgufTensor[] = [
      { name: 'odd', shape: [3], type: 'f32', data: values('odd', 3) },
      { name: 'half', shape: [2, 5], type: 'f16', data: values('half', 10) },
      { name: 'eight', shape: [2, 2, 32], type: 'q8_0', data: values('eight', 128) },
      { name: 'four', shape: [1, 64], type: 'q4_0', data: values('four', 64) },
      { name: 'brain', shape: [7], type: 'bf16', data: values('brain', 7) },
    ];
    const path = join(folder, 'x.gguf');
    const bytes = await writeGguf(path, metadata, tensors);
    const file = readGguf(path);
    assert.deepEqual([file.version, file.size], [3, bytes]);
    assert.deepEqual(Object.fromEntries(file.metadata), {
      'general.architecture': 'llama',
      'a.number': 4294967295,
      'a.real': 0.5,
      'a.flag': true,
      'some.texts': ['', 'ü', 'a b'],
      'some.numbers': [-1, 2],
    });
    assert.deepEqual(
      file.tensors.map((t) => [t.name, t.dims, t.type]),
      [
        ['odd', [3], 0],
        ['half', [5, 2], 1],
        ['eight', [32, 2, 2], 8],
        ['four', [64, 1], 2],
        ['brain', [7], 30],
      ],
    );
    assert.deepEqual(asked, ['odd', 'half', 'eight', 'four', 'brain'], 'one after the other');
    for (const t of file.tensors) assert.equal(t.offset % 32, 0);
    assert.equal(file.size % 32, 0);
    for (const name of ['odd', 'half', 'brain']) {
      const t = file.tensors.find((o) => o.name === name)!;
      const got = dequantised(t.type, t.bytes);
      assert.deepEqual(
        got,
        got.map((_, k) => k - 8),
      );
    }
    assert.deepEqual(readdirSync(folder), ['x.gguf']);
  });

  test('a tensor that fails leaves nothing behind; rows that are no whole blocks are refused', async () => {
    const before = readdirSync(folder);
    const bad: [GgufTensor, RegExp][] = [
      [
        { name: 't', shape: [2], type: 'f32', data: () => Promise.reject(new AnsatzError('no such bytes')) },
        /no such bytes/,
      ],
      [
        { name: 't', shape: [2], type: 'f32', data: async () => new Float32Array(3) },
        /12 bytes of data do not fill \[2\]/,
      ],
      [{ name: 't', shape: [2, 33], type: 'q8_0', data: async () => new Float32Array(66) }, /not whole blocks/],
    ];
    for (const [tensor, message] of bad)
      await assert.rejects(
        madeWhole(join(folder, 'y.gguf'), (draft) => writeGguf(draft, metadata, [tensor])),
        message,
      );
    await assert.rejects(
      madeWhole(join(folder, 'x.gguf', 'z'), (draft) => writeGguf(draft, metadata, [])),
      /z: cannot be written \(E(NOTDIR|EXIST)\)/,
    );
    assert.deepEqual(readdirSync(folder), before);
  });
});
