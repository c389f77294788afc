/** tokenizer.json: what pre-tokenizers do, and what happens to files that cannot be used. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { AnsatzError } from '../../src/backend/errors.ts';
import { BYTE_SYMBOLS } from '../../src/data/tokenizer/byte-level.ts';
import { type JsonObject, NAMED_PATTERNS, Tokenizer } from '../../src/data/tokenizer/index.ts';
import { nativePattern } from '../../src/data/tokenizer/patterns.ts';
import { compileOniguruma } from '../../src/data/tokenizer/regex.ts';

const symbols = (text: string) => [...Buffer.from(text)].map((byte) => BYTE_SYMBOLS[byte]).join('');
const byteLevel = (add_prefix_space: boolean, use_regex: boolean): JsonObject => ({
  type: 'ByteLevel',
  add_prefix_space,
  use_regex,
});
const split = (Regex: string): JsonObject => ({
  type: 'Split',
  pattern: { Regex },
  behavior: 'Isolated',
  invert: false,
});
const sequence = (...pretokenizers: JsonObject[]): JsonObject => ({ type: 'Sequence', pretokenizers });

/** A tokenizer for which every part of `text` is a token that `ignore_merges` takes whole: its tokens are the pieces. */
function showPieces(text: string, pre_tokenizer: JsonObject, more: JsonObject = {}): string[] {
  const vocab: Record<string, number> = {};
  BYTE_SYMBOLS.forEach((symbol, byte) => {
    vocab[symbol] = byte;
  });
  let size = 256;
  const letters = [...` ${text}`];
  for (let from = 0; from < letters.length; from++)
    for (let to = from + 1; to <= letters.length; to++) {
      const part = symbols(letters.slice(from, to).join(''));
      if (!(part in vocab)) vocab[part] = size++;
      const prefixed = symbols(` ${letters.slice(from, to).join('')}`);
      if (!(prefixed in vocab)) vocab[prefixed] = size++;
    }
  const model = { type: 'BPE', vocab, merges: [], ignore_merges: true };
  const added = ((more.added_tokens as JsonObject[] | undefined) ?? []).map((token) => ({
    ...token,
    id: vocab[token.content as string] ?? size++,
  }));
  const tokenizer = Tokenizer.fromJSON({ model, pre_tokenizer, ...more, added_tokens: added });
  return [...tokenizer.encode(text)].map((id) => tokenizer.decode([id]));
}

// tiktoken's current spelling: possessive, and white space at the end of the text stays together. Oniguruma reads
// {1,3}+ as a repeated group, so digits are not cut.
const newest =
  "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}++|\\p{N}{1,3}+| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*+|\\s++$|\\s*[\\r\\n]|\\s+(?!\\S)|\\s";

describe('tokenizer.json: pieces are those of Hugging Face tokenizers 0.23.2 (Python)', () => {
  const texts = [
    "it'ſa IT'Sa 'LL'x",
    '\ufeffx \ufeff',
    'a\u0085\u0085b\u0085',
    'x\n   ',
    'x \n \n  y',
    '1234567 ١٢٣٤',
    'e\u0301a\u0301',
    '\r\n\r\n a',
    '!?\n\nx',
    '\u3000\u3000x  \u00a0y',
    "''s 's's",
  ];
  const cl100k = [
    ['it', "'ſ", 'a', ' IT', "'S", 'a', " '", 'LL', "'x"],
    ['\ufeffx', ' \ufeff'],
    ['a', '\u0085', '\u0085b', '\u0085'],
    ['x', '\n', '   '],
    ['x', ' \n \n', ' ', ' y'],
    ['123', '456', '7', ' ', '١٢٣', '٤'],
    ['e', '\u0301a', '\u0301'],
    ['\r\n\r\n', ' a'],
    ['!?\n\n', 'x'],
    ['\u3000', '\u3000x', '  ', '\u00a0y'],
    ["''", 's', " '", 's', "'s"],
  ];
  const gpt2 = [
    ['it', "'", 'ſa', ' IT', "'", 'Sa', " '", 'LL', "'", 'x'],
    ['\ufeff', 'x', ' \ufeff'],
    ['a', '\u0085', '\u0085', 'b', '\u0085'],
    ['x', '\n   '],
    ['x', ' \n \n ', ' y'],
    ['1234567', ' ١٢٣٤'],
    ['e', '\u0301', 'a', '\u0301'],
    ['\r\n\r\n', ' a'],
    ['!?', '\n', '\n', 'x'],
    ['\u3000', '\u3000', 'x', '  ', '\u00a0', 'y'],
    ["''", 's', " '", 's', "'s"],
  ];
  const cases: [string, JsonObject, string[][]][] = [
    ['cl100k', sequence(split(NAMED_PATTERNS.cl100k), byteLevel(false, false)), cl100k],
    ['cl100k in JavaScript', sequence(split(`(?:${NAMED_PATTERNS.cl100k})`), byteLevel(false, false)), cl100k],
    ['GPT-2', byteLevel(false, true), gpt2],
    ['GPT-2 as a Split', sequence(split(NAMED_PATTERNS.gpt2), byteLevel(false, false)), gpt2],
    ['GPT-2 in JavaScript', sequence(split(`(?:${NAMED_PATTERNS.gpt2})`), byteLevel(false, false)), gpt2],
  ];
  for (const [name, stage, expected] of cases)
    it(name, () =>
      assert.deepEqual(
        texts.map((text) => showPieces(text, stage)),
        expected,
      ),
    );
  it('possessive quantifiers, and interval then plus', () => {
    const stage = sequence(split(newest), byteLevel(false, false));
    const expected = [...cl100k];
    expected[3] = ['x', '\n   '];
    expected[5] = ['1234567', ' ', '١٢٣٤'];
    assert.deepEqual(
      texts.map((text) => showPieces(text, stage)),
      expected,
    );
  });
  it('a missing space is added to each section, or to each piece', () => {
    assert.deepEqual(showPieces('a b', byteLevel(true, true)), [' a', ' b']);
    assert.deepEqual(showPieces(' a', byteLevel(true, true)), [' a']);
    assert.deepEqual(showPieces('ab1', sequence(split(NAMED_PATTERNS.cl100k), byteLevel(true, false))), [' ab', ' 1']);
    assert.deepEqual(showPieces('ab1', sequence(split('\\p{N}'), byteLevel(true, false))), [' ab', ' 1']);
  });
  it('Digits, removed separators, kept matches', () => {
    const digits = (individual_digits: boolean) =>
      sequence({ type: 'Digits', individual_digits }, byteLevel(false, false));
    assert.deepEqual(showPieces('a12b', digits(true)), ['a', '1', '2', 'b']);
    assert.deepEqual(showPieces('a12b', digits(false)), ['a', '12', 'b']);
    const removed = (invert: boolean) =>
      sequence({ ...split('\\d+'), behavior: 'Removed', invert }, byteLevel(false, false));
    assert.deepEqual(showPieces('a12b', removed(false)), ['a', 'b']);
    assert.deepEqual(showPieces('a12b', removed(true)), ['12']);
  });
  it('added tokens: longest first, single words, stripped white space, normalised', () => {
    const stage = byteLevel(false, false);
    const added_tokens: JsonObject[] = [
      { content: 'tok', single_word: true, special: false, normalized: false },
      { content: '<l>', lstrip: true, special: true, normalized: false },
      { content: '<r>', rstrip: true, special: true, normalized: false },
      { content: '<r>>', special: true, normalized: false },
      { content: 'é', special: false, normalized: true },
    ];
    const normalizer = { type: 'NFC' };
    const pieces = (text: string) => showPieces(text, stage, { added_tokens, normalizer });
    assert.deepEqual(pieces('tok token tok'), ['tok', ' token ', 'tok']);
    assert.deepEqual(pieces('é tok_-tok'), ['é', ' tok_-', 'tok']);
    assert.deepEqual(pieces('a  <l>  b'), ['a', '<l>', '  b']);
    assert.deepEqual(pieces('a <r>  b<r>> <r'), ['a ', '<r>', 'b', '<r>>', ' <r']);
    assert.deepEqual(pieces('xe\u0301y'), ['x', 'é', 'y']);
  });
});

describe('tokenizer.json: reading', () => {
  const base = Tokenizer.train(['hello world hello'], { vocabSize: 262 }).toJSON();
  const changed = (change: (json: JsonObject & { model: JsonObject & { vocab: Record<string, number> } }) => void) => {
    const json = JSON.parse(JSON.stringify(base));
    change(json);
    return () => Tokenizer.fromJSON(json);
  };

  it('the template of a post_processor is added on request', () => {
    const template: JsonObject[] = [
      { SpecialToken: { id: '<|endoftext|>', type_id: 0 } },
      { Sequence: { id: 'A', type_id: 0 } },
    ];
    const processors: JsonObject[] = [byteLevel(true, true), { type: 'TemplateProcessing', single: template }];
    const tokenizer = changed((json) => {
      json.post_processor = { type: 'Sequence', processors };
    })();
    const plain = [...tokenizer.encode('hello')];
    assert.deepEqual([...tokenizer.encode('hello', { template: true })], [0, ...plain]);
    assert.deepEqual([...tokenizer.encodeBatch(['hello'], { template: true })[0]], [0, ...plain]);
  });
  it('old files without model.type, fields or added tokens', () => {
    const tokenizer = changed((json) => {
      delete json.model.type;
      delete json.added_tokens;
      delete json.decoder;
      delete json.normalizer;
      json.pre_tokenizer = { type: 'ByteLevel' };
    })();
    assert.equal(tokenizer.decode(tokenizer.encode('hello')), ' hello'); // add_prefix_space is Hugging Face's default
    assert.throws(() => tokenizer.decode([262]), AnsatzError);
    assert.throws(
      () =>
        changed((json) => {
          json.added_tokens = [];
          delete json.model.vocab['<|endoftext|>'];
        })().eot,
      /no end-of-text token/,
    );
  });

  const refused: [string, Parameters<typeof changed>[0], RegExp][] = [
    ['WordPiece', (json) => void (json.model.type = 'WordPiece'), /the model is "WordPiece"; only byte-level BPE/],
    ['Unigram', (json) => void (json.model = { type: 'Unigram', vocab: [] as never }), /not a list of pieces/],
    ['byte fallback', (json) => void (json.model.byte_fallback = true), /"ByteLevel" is not supported with pieces/],
    ['dropout', (json) => void (json.model.dropout = 0.1), /dropout/],
    ['a word suffix', (json) => void (json.model.end_of_word_suffix = '</w>'), /end_of_word_suffix "<\/w>"/],
    ['a normalizer', (json) => void (json.normalizer = { type: 'Lowercase' }), /the normalizer "Lowercase"/],
    ['a pre_tokenizer', (json) => void (json.pre_tokenizer = { type: 'Whitespace' }), /the pre_tokenizer "Whitespace"/],
    ['no pre_tokenizer', (json) => void (json.pre_tokenizer = null), /does not end in ByteLevel/],
    ['a decoder', (json) => void (json.decoder = { type: 'Metaspace' }), /the decoder "Metaspace"/],
    ['a post_processor', (json) => void (json.post_processor = { type: 'New' }), /the post_processor "New"/],
    [
      'a split behaviour',
      (json) => void (json.pre_tokenizer = { ...split('a'), behavior: 'Contiguous' }),
      /"Contiguous"/,
    ],
    ['a pattern', (json) => void (json.pre_tokenizer = split('(?<name')), /pattern "\(\?<name" cannot be used/],
    ['no model', (json) => void (json.model = null as never), /there is no model/],
    ['no vocabulary', (json) => void (json.model.vocab = null as never), /model\.vocab is not an object/],
    ['no merges', (json) => void (json.model.merges = 3), /model\.merges is not a list/],
    ['a bad id', (json) => void (json.model.vocab.h = -1), /the id of the token "h" is -1/],
    ['a huge id', (json) => void (json.model.vocab.h = 1e9), /the id of the token "h" is 1000000000/],
    ['a shared id', (json) => void (json.model.vocab.h = json.model.vocab.e), /the tokens "e" and "h" share the id/],
    ['a missing byte', (json) => void delete json.model.vocab.q, /lacks "q", the symbol of byte 113/],
    ['a broken merge', (json) => void ((json.model.merges as string[])[0] = 'abc'), /merge 0 is "abc"/],
    [
      'an unknown merge',
      (json) => void ((json.model.merges as string[])[1] = 'q q'),
      /merge 1, "q q", needs the token "qq"/,
    ],
    [
      'an added token without text',
      (json) => void (json.added_tokens = [{ id: 1 }]),
      /added_tokens\[0\] has no content/,
    ],
    ['a stolen id', (json) => void (json.added_tokens = [{ id: 5, content: '<x>' }]), /has the id 5 of/],
    ['two ids', (json) => void (json.added_tokens = [{ id: 300, content: 'h' }]), /"h" has two ids/],
  ];
  for (const [name, change, message] of refused)
    it(`refuses ${name}`, () => {
      assert.throws(
        changed(change),
        (error) => error instanceof AnsatzError && message.test(error.message) && !error.message.includes('\n'),
      );
    });

  it('names the file that is missing or damaged', () => {
    const folder = mkdtempSync(join(tmpdir(), 'ansatz-tokenizer-'));
    try {
      const path = join(folder, 'tokenizer.json');
      assert.throws(() => Tokenizer.fromFile(path), { name: 'AnsatzError', message: /there is no such file/ });
      for (const [content, message] of [
        [JSON.stringify(base).slice(0, 500), /tokenizer\.json is not valid JSON/],
        ['', /is not valid JSON/],
        ['[1, 2]', /tokenizer\.json: the file holds \[1,2\], not an object/],
      ] as const) {
        writeFileSync(path, content);
        assert.throws(
          () => Tokenizer.fromFile(path),
          (error) => error instanceof AnsatzError && message.test(error.message),
        );
      }
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

describe('tokenizer.json: patterns', () => {
  it('are recognised in the spellings in use, and in no other', () => {
    assert.deepEqual(nativePattern(NAMED_PATTERNS.cl100k), { kind: 2, maxDigits: 3, ignoreCase: true });
    assert.deepEqual(nativePattern(NAMED_PATTERNS.qwen2), { kind: 2, maxDigits: 1, ignoreCase: true });
    assert.equal(nativePattern(NAMED_PATTERNS.gpt2)?.kind, 1);
    for (const other of [
      newest,
      `${NAMED_PATTERNS.cl100k}|x`,
      `x|${NAMED_PATTERNS.gpt2}`,
      NAMED_PATTERNS.cl100k.replace('{1,3}', '{1,3}+'),
    ])
      assert.equal(nativePattern(other), undefined);
  });
  it('are translated from Oniguruma', () => {
    const matches = (source: string, text: string) =>
      [...text.matchAll(compileOniguruma(source))].map((match) => match[0]);
    assert.deepEqual(matches('(?i:k[a-c]s)', 'KAS kbs \u212acſ kds'), ['KAS', 'kbs', '\u212acſ']);
    assert.deepEqual(matches('(?i:a)b', 'Ab AB ab'), ['Ab', 'ab']);
    assert.deepEqual(matches('a++b|a', 'aab aa'), ['aab', 'a', 'a']);
    assert.deepEqual(matches('a*+a', 'aaa'), []);
    assert.deepEqual(matches('(?>ab|a)b', 'abb ab'), ['abb']);
    assert.deepEqual(matches('\\d{2}+', '123456'), ['123456']);
    assert.deepEqual(matches('x{2,3}?', 'xxxxx'), ['xx', 'xx']);
    assert.deepEqual(matches('^a$', 'a\na\nba'), ['a', 'a']);
    assert.deepEqual(matches('\\Aa|b\\z', 'ab\nab'), ['a', 'b']);
    assert.deepEqual(matches('\\s', '\u0085\ufeff'), ['\u0085']);
    assert.deepEqual(matches('[^\\S\\n]+', ' \t\n '), [' \t', ' ']);
    assert.deepEqual(matches('\\h+|[\\h.]{4}', 'ff.g'), ['ff']);
    assert.deepEqual(matches('\\x{41}|\\p{^L}', 'Ab1'), ['A', '1']);
    assert.deepEqual(matches('\\-|/|]|}', '-/]}'), ['-', '/', ']', '}']);
    for (const source of ['(', ')', '[a', '[[:alpha:]]', '(?m:.)', '\\G', '\\b', 'a**b(', '\\'])
      assert.throws(() => compileOniguruma(source), SyntaxError, source);
  });
});
