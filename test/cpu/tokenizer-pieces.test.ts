// Tokenizers of the SentencePiece kind: Unigram (T5) and BPE with byte fallback (Llama 2), small enough to follow by hand.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { AnsatzError } from '../../src/backend/errors.ts';
import { reserveSpecials, StreamDecoder, Tokenizer } from '../../src/data/tokenizer/index.ts';
import { checkout, temporaryFolder } from '../support/tiny-data.ts';

const control = (id: number, content: string) => ({
  ...{ id, content, special: true, normalized: false, single_word: false, lstrip: false, rstrip: false },
});

/** T5's form: scores, a space as U+2581, </s> after every text. */
const unigram = (): Record<string, unknown> & { model: Record<string, unknown> } => ({
  added_tokens: [control(0, '<pad>'), control(1, '</s>'), control(2, '<unk>')],
  normalizer: null,
  pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: true },
  post_processor: {
    type: 'TemplateProcessing',
    single: [{ Sequence: { id: 'A', type_id: 0 } }, { SpecialToken: { id: '</s>', type_id: 0 } }],
    special_tokens: { '</s>': { id: '</s>', ids: [1], tokens: ['</s>'] } },
  },
  decoder: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always' },
  model: {
    type: 'Unigram',
    unk_id: 2,
    vocab: [
      ['<pad>', 0],
      ['</s>', 0],
      ['<unk>', 0],
      ['▁', -2],
      ['▁un', -3],
      ['able', -3.5],
      ['▁unable', -7],
      ...[...'unableto</s>'].filter((c, k, all) => all.indexOf(c) === k).map((c) => [c, -5]),
      ['▁to', -3],
    ],
  },
});

/** Llama 2's form: the normaliser puts the space, bytes stand in for what the vocabulary lacks. */
const fallback = (): Record<string, unknown> => {
  const bytes = Array.from({ length: 256 }, (_, b) => `<0x${b.toString(16).toUpperCase().padStart(2, '0')}>`);
  const pieces = ['<unk>', '<s>', '</s>', ...bytes, '▁', 'h', 'i', '▁h', '▁hi', '<', 's', '>', '/'];
  return {
    added_tokens: [control(0, '<unk>'), control(1, '<s>'), control(2, '</s>')],
    normalizer: {
      type: 'Sequence',
      normalizers: [
        { type: 'Prepend', prepend: '▁' },
        { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
      ],
    },
    pre_tokenizer: null,
    post_processor: null,
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        { type: 'Strip', content: ' ', start: 1, stop: 0 },
      ],
    },
    model: {
      ...{ type: 'BPE', unk_token: '<unk>', fuse_unk: true, byte_fallback: true },
      vocab: Object.fromEntries(pieces.map((piece, id) => [piece, id])),
      merges: ['▁ h', '▁h i'],
    },
  };
};
const names = (t: Tokenizer, ids: Iterable<number>): (string | undefined)[] => [...ids].map((id) => t.idToToken(id));

describe('Unigram', () => {
  const t = Tokenizer.fromJSON(unigram());

  test('the division with the best score', () => {
    // "un" + "able" scores -6.5, "unable" as one piece -7.
    assert.deepEqual(names(t, t.encode('unable to')), ['▁un', 'able', '▁to']);
    assert.deepEqual(names(t, t.encode('')), []);
    assert.deepEqual(names(t, t.encode('to', { template: true })), ['▁to', '</s>']);
    assert.deepEqual([t.template.after, t.eot, t.vocabSize], [[1], 1, unigramSize()]);
  });

  test('the name of a control token is that token, or plain text', () => {
    assert.deepEqual(names(t, t.encode('to</s>')), ['▁to', '</s>']);
    assert.deepEqual(names(t, t.encode('to</s>', { special: 'text' })), ['▁to', '<', '/', 's', '>']);
  });

  test('text comes back, without the space that was put before it; what is unknown does not', () => {
    for (const text of ['unable to', 'to unable unable', 'u n']) assert.equal(t.decode(t.encode(text)), text);
    assert.equal(Buffer.from(t.decodeBytes(t.encode('to un'))).toString(), ' to un');
    assert.equal(names(t, t.encode('toX'))[1], '<unk>');
  });

  test('batches, and special tokens that an objective adds', async () => {
    const texts = ['unable', 'to'];
    const wanted = texts.map((x) => t.encode(x));
    assert.deepEqual(t.encodeBatch(texts), wanted);
    assert.deepEqual(await t.encodeBatchAsync(texts), wanted);
    const more = reserveSpecials(t, ['<|x|>']);
    assert.deepEqual([...more.encode('to<|x|>')].at(-1), t.vocabSize);
    assert.ok(![...more.encode('to<|x|>', { special: 'text' })].includes(t.vocabSize));
  });

  function unigramSize(): number {
    return (unigram().model.vocab as unknown[]).length;
  }
});

describe('BPE with byte fallback', () => {
  const t = Tokenizer.fromJSON(fallback());

  test('merges, then bytes for what is left', () => {
    assert.deepEqual(names(t, t.encode('hi h')), ['▁hi', '▁h']);
    assert.deepEqual(names(t, t.encode('é')), ['▁', '<0xC3>', '<0xA9>']);
    for (const text of ['hi h', 'é 你好', ' hi', '']) assert.equal(t.decode(t.encode(text, { special: 'text' })), text);
  });

  test('a stream holds back half a character', () => {
    const stream = new StreamDecoder(t);
    const ids = [...t.encode('hi é')];
    assert.deepEqual([...ids.map((id) => stream.push(id)), stream.end()], [' hi', ' ', '', 'é', '']);
  });

  test('control tokens', () => {
    assert.deepEqual(names(t, t.encode('<s>'))[0], '<s>');
    assert.deepEqual(names(t, t.encode('<s>', { special: 'text' })), ['▁', '<', 's', '>']);
  });
});

describe('no space before texts (Yi, Gemma)', () => {
  const json = fallback() as ReturnType<typeof unigram> & { decoder: { decoders: unknown[] } };
  json.normalizer = { type: 'Replace', pattern: { String: ' ' }, content: '▁' };
  json.decoder.decoders.pop();
  const t = Tokenizer.fromJSON({
    ...json,
    added_tokens: [
      ...(json.added_tokens as { content: string }[]).map((a) => ({ ...a, special: a.content !== '</s>' })),
      control(400, '<eos>'),
      { ...control(401, '▁▁'), special: false },
    ],
  } as never);

  test('a space that begins a text is its own', () => {
    assert.deepEqual(names(t, t.encode('hi')), ['h', 'i']);
    for (const text of ['hi', ' hi', '\n h', 'é']) assert.equal(t.decode(t.encode(text)), text);
    assert.equal(t.decode([401, ...t.encode('hi')]), '  hi', 'added tokens have spaces too');
  });

  test('a control token ends texts before markup of that name does', () => assert.equal(t.eot, 400));
});

describe('files that are refused', () => {
  const cases: [string, (json: ReturnType<typeof unigram>) => void, RegExp][] = [
    ['no pieces', (j) => void (j.model.vocab = []), /not a list of pieces/],
    ['a piece without a score', (j) => void (j.model.vocab = [['a', 0], ['b']]), /unk_id|piece 1 is \["b"\]/],
    [
      'a piece twice',
      (j) =>
        void (j.model.vocab = [
          ['a', 0],
          ['b', 0],
          ['a', 0],
        ]),
      /the piece "a" is there twice/,
    ],
    ['no unknown piece', (j) => void (j.model.unk_id = null), /model\.unk_id is null/],
    ['a decoder of another kind', (j) => void (j.decoder = { type: 'WordPiece' }), /the decoder "WordPiece"/],
    ['byte fallback', (j) => void (j.model.byte_fallback = true), /Unigram model with byte_fallback/],
    ['a normaliser that nobody knows', (j) => void (j.normalizer = { type: 'New' }), /does not take it: .*New/],
  ];
  for (const [name, change, message] of cases)
    test(name, () => {
      const json = unigram();
      change(json);
      assert.throws(
        () => Tokenizer.fromJSON(json),
        (e) => e instanceof AnsatzError && message.test(e.message) && /^tokenizer\.json: /.test(e.message),
      );
    });

  test('without the package: one line that says what to install; byte-level tokenizers do without it', () => {
    const folder = temporaryFolder('no-package');
    cpSync(join(checkout, 'src'), join(folder, 'src'), { recursive: true });
    mkdirSync(join(folder, 'node_modules'));
    for (const name of ['tsx', 'zod', 'esbuild', '@esbuild', 'get-tsconfig', 'resolve-pkg-maps'])
      try {
        symlinkSync(join(checkout, 'node_modules', name), join(folder, 'node_modules', name));
      } catch {}
    writeFileSync(join(folder, 'package.json'), '{"type":"module"}');
    writeFileSync(join(folder, 'pieces.json'), JSON.stringify(fallback()));
    const script = `
      import { Tokenizer } from './src/data/tokenizer/index.ts';
      try { Tokenizer.fromFile('pieces.json'); } catch (e) { console.log(e.message, '|', e.hint); }`;
    writeFileSync(join(folder, 'x.mts'), script);
    const result = spawnSync(process.execPath, ['--import', 'tsx', 'x.mts'], {
      cwd: folder,
      encoding: 'utf8',
      env: { ...process.env, NODE_TEST_CONTEXT: undefined, ANSATZ_NATIVE: join(checkout, 'build', 'ansatz.node') },
    });
    assert.match(
      result.stdout,
      /^pieces\.json: .*a package that is not installed \| npm install @huggingface\/tokenizers\n$/,
      result.stderr,
    );
  });
});
