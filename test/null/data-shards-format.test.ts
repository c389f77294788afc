import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { crc32 } from 'node:zlib';
import { decodeHeader, encodeHeader, layoutOf, tokenBytesFor } from '../../src/data/shards-format.ts';

const tokenizerHash = createHash('sha256').update('tokenizer').digest('hex');

test('the header survives a round trip, large numbers included', () => {
  const header = {
    tokenBytes: 4 as const,
    vocabSize: 200_000,
    eot: 199_999,
    payloadCrc: crc32('x'),
    tokens: 2 ** 40 + 3,
    documents: 0,
    textBytes: 2 ** 45 + 1,
    tokenizerHash,
  };
  const fileBytes = 128 + Math.ceil((header.tokens * 4) / 8) * 8 + 8;
  assert.deepEqual(decodeHeader(encodeHeader(header), fileBytes, 'x'), header);
});

test('tokens take two bytes as long as every id fits, and the tables stay aligned', () => {
  assert.deepEqual([1, 65535, 65536, 65537, 2 ** 20].map(tokenBytesFor), [2, 2, 2, 4, 4]);
  for (const tokenBytes of [2, 4] as const) {
    for (let tokens = 0; tokens < 20; tokens++) {
      const { tokensAt, tablesAt, fileBytes } = layoutOf({ tokenBytes, tokens, documents: 3 });
      assert.equal(tablesAt % 8, 0);
      assert.ok(tablesAt - tokensAt >= tokens * tokenBytes && tablesAt - tokensAt < tokens * tokenBytes + 8);
      assert.equal(fileBytes, tablesAt + 8 * 10);
    }
  }
});
