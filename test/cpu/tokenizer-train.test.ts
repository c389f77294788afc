/** Learning merges, against a naive trainer and against what Hugging Face's own library learns. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { AnsatzError } from '../../src/backend/errors.ts';
import { Tokenizer, type TrainProgress } from '../../src/data/tokenizer/index.ts';
import { turnsDuring } from '../support/turns.ts';

interface Model {
  vocab: Record<string, number>;
  merges: string[];
}
const modelOf = (tokenizer: Tokenizer) => tokenizer.toJSON().model as unknown as Model;

const prose = [
  "She sells sea shells by the sea shore; the shells she sells are sea-shore shells, I'm sure.\n",
  'aaaa aaaaaaa aaab abab ababab bababa 1000 10000 100000\r\n\r\n    if (x == 10) { return x; }\n',
  'Größe größer am größten, naïve café — 日本語の日本 日本語\n',
];

/** What tokenizers 0.23.2 (Python) learns from `prose`: BpeTrainer, vocabulary 400, min_frequency 1, byte alphabet. */
const learnedByHuggingFace =
  'a a,Ġ s,a b,h e,0 0,l l,r e,Ġs e,ll s,Ġs he,ab ab,1 00,r Ã,¥ æ,¶ Ã,æ Ĺ,ľ ¬,aa aa,Ġse a,Ġshe lls,rÃ ¶Ã,¥æ ľ¬,æĹ ¥æľ¬,' +
  'rÃ¶Ã Ł,g rÃ¶ÃŁ,h o,t he,ª ŀ,è ªŀ,č Ċ,Ġ a,Ġ b,Ġ Ġ,Ġ abab,Ġ æĹ¥æľ¬,Ġ grÃ¶ÃŁ,Ġ the,Ġse lls,ho re,ĠæĹ¥æľ¬ èªŀ,' +
  "' m,- s,. Ċ,1 0,= =,G rÃ¶ÃŁ,S he,a f,a Ã,c af,e n,e r,i f,n aÃ,r n,t u,t en,u re,v e,} Ċ,® æĹ¥æľ¬,¯ ve,Ã ©,â Ģ,ã ģ," +
  'Ġ (,Ġ I,Ġ x,Ġ {,Ġ aa,Ġ re,Ġ aaaa,Ġ ==,Ġ caf,Ġ if,Ġ naÃ,Ġ }Ċ,Ġ âĢ,aa a,Ġs hore,Ġs ure,00 0,abab a,čĊ čĊ,Ġa m,Ġa re,' +
  'Ġb y,Ġb ababa,ĠĠ Ġ,Ġabab ab,ĠgrÃ¶ÃŁ er,ĠgrÃ¶ÃŁ ten,ĠæĹ¥æľ¬èªŀ ãģ,-s hore,GrÃ¶ÃŁ e,tu rn,Ġaa ab,Ġre turn,Ġaaaa aaa,' +
  'Ġcaf Ã©,ĠnaÃ ¯ve,ĠâĢ Ķ,ĠæĹ¥æľ¬èªŀãģ ®æĹ¥æľ¬';

/** Recounts every pair before every merge; words = pieces of single letters. */
function naiveMerges(pieces: string[], vocab: Map<string, number>, size: number, minFrequency: number): string[] {
  let words = pieces.map((piece) => [...piece]);
  const merges: string[] = [];
  while (vocab.size < size) {
    const counts = new Map<string, { left: string; right: string; count: number }>();
    for (const word of words)
      for (let k = 0; k + 1 < word.length; k++) {
        const key = `${word[k]} ${word[k + 1]}`;
        const entry = counts.get(key) ?? { left: word[k], right: word[k + 1], count: 0 };
        entry.count++;
        counts.set(key, entry);
      }
    const order = (token: string) => vocab.get(token)!;
    const [best] = [...counts.values()].sort(
      (a, b) => b.count - a.count || order(a.left) - order(b.left) || order(a.right) - order(b.right),
    );
    if (!best || best.count < minFrequency) break;
    const product = best.left + best.right;
    merges.push(`${best.left} ${best.right}`);
    if (!vocab.has(product)) vocab.set(product, vocab.size);
    words = words.map((word) => {
      const out: string[] = [];
      for (let k = 0; k < word.length; k++) {
        if (word[k] === best.left && word[k + 1] === best.right) out.push(word[k++] + word[k]);
        else out.push(word[k]);
      }
      return out;
    });
  }
  return merges;
}

/** Words over a small alphabet: long runs, overlapping pairs, many ties, the same string reached in several ways. */
function babble(count: number, letters: string): string[] {
  let state = 12345;
  const next = (n: number) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 16) % n;
  };
  return Array.from({ length: count }, () =>
    Array.from({ length: 1 + next(11) }, () => letters[next(letters.length)]).join(''),
  );
}

describe('tokenizer: training', () => {
  it('learns what Hugging Face learns', () => {
    const specials = ['<|endoftext|>', '<|x|>'];
    const tokenizer = Tokenizer.train(prose, { vocabSize: 400, minFrequency: 1, specials });
    assert.deepEqual(modelOf(tokenizer).merges, learnedByHuggingFace.split(/,(?=\S+ )/));
    assert.equal(tokenizer.vocabSize, 2 + 256 + 103);
    assert.deepEqual(
      [...tokenizer.specialIds],
      specials.map((token, id) => [token, id]),
    );
    assert.deepEqual(
      ['!', '~', '¡', 'ÿ', 'Ā', 'Ġ'].map((symbol) => tokenizer.tokenToId(symbol)),
      [2, 95, 96, 189, 190, 222],
    );
    for (const [minFrequency, merges] of [
      [1, 103],
      [2, 40],
      [3, 24],
    ])
      assert.equal(modelOf(Tokenizer.train(prose, { vocabSize: 2000, minFrequency, specials })).merges.length, merges);
  });

  for (const letters of ['ab', 'abc', 'abcdefgh'])
    it(`learns what counting from scratch learns, over the letters ${letters}`, () => {
      const words = babble(400, letters);
      const symbols = Tokenizer.train([], { vocabSize: 257 });
      const vocab = new Map(Object.entries(modelOf(symbols).vocab));
      const expected = naiveMerges(words, vocab, 420, 2);
      // One document a word: each is one piece.
      const tokenizer = Tokenizer.train(words, { vocabSize: 420 });
      assert.deepEqual(modelOf(tokenizer).merges, expected);
      assert.deepEqual(new Map(Object.entries(modelOf(tokenizer).vocab)), vocab);
    });

  it('does not depend on threads, on the order of documents, or on waiting', async () => {
    const documents = Array.from(
      { length: 60 },
      (_, k) => `${babble(200 + k, 'abcdefghijklm').join(' ')}\n${prose[k % 3]}`,
    );
    const large = documents.join('').repeat(30); // more than one share
    const options = { vocabSize: 900 };
    const expected = modelOf(Tokenizer.train([...documents, large], { ...options, threads: 1 }));
    for (const threads of [2, 3, 8])
      assert.deepEqual(modelOf(Tokenizer.train([large, ...documents.reverse()], { ...options, threads })), expected);
    async function* stream() {
      for (const document of [...documents, large]) yield Buffer.from(document);
    }
    assert.deepEqual(modelOf(await Tokenizer.trainAsync(stream(), options)), expected);
  });

  it('cuts a long text where every pattern has a boundary', () => {
    const text = `${babble(3000, 'ab ').join('\n \n')}\n`.repeat(220); // several shares, with runs of white space
    const lines = `${'x'.repeat(40)}\n${'y '.repeat(20)}\n`;
    for (const pattern of ['cl100k', 'gpt2'])
      for (const corpus of [text, lines.repeat(30_000)]) {
        const piecewise = Tokenizer.train([corpus], { vocabSize: 330, pattern });
        // A redundant group hides the pattern from the native scanner: split whole, by the regular expression.
        const split = (
          piecewise.toJSON().pre_tokenizer as unknown as { pretokenizers: { pattern: { Regex: string } }[] }
        ).pretokenizers[0];
        const whole = Tokenizer.train([corpus], { vocabSize: 330, pattern: `(?:${split.pattern.Regex})` });
        assert.deepEqual(modelOf(piecewise), modelOf(whole));
      }
  });

  it('reports progress', async () => {
    const documents = Array.from({ length: 40 }, () => babble(300, 'abcdefghijklmnop').join(' '));
    const bytes = documents.reduce((sum, text) => sum + text.length, 0);
    for (const train of [Tokenizer.train, Tokenizer.trainAsync]) {
      const seen: TrainProgress[] = [];
      await train(documents, { vocabSize: 700, onProgress: (progress) => seen.push(progress) });
      assert.deepEqual(seen.at(-1), { phase: 'merge', bytes, tokens: 700, vocabSize: 700 });
      assert.equal(seen[0].phase, 'count');
      for (let k = 1; k < seen.length; k++)
        assert.ok(seen[k].tokens >= seen[k - 1].tokens && seen[k].bytes >= seen[k - 1].bytes);
    }
  });

  it('leaves the event loop free', async () => {
    const documents = Array.from({ length: 200 }, (_, k) => babble(3000 + k, 'abcdefghijklmnopqrstuvwxyz').join(' '));
    const turns = await turnsDuring(() => Tokenizer.trainAsync(documents, { vocabSize: 3000 }));
    assert.ok(turns > 20, `${turns} turns`);
  });

  it('takes anything as text', () => {
    const empty = Tokenizer.train([], { vocabSize: 300 });
    assert.equal(empty.vocabSize, 257);
    assert.deepEqual([...empty.encode('')], []);
    const binary = Tokenizer.train([Uint8Array.of(0xff, 0xfe, 0xff, 0xfe, 0xff, 0xfe), '', '\ud800'], {
      vocabSize: 300,
    });
    assert.deepEqual([...binary.decodeBytes(binary.encode(Uint8Array.of(0xff, 0xfe)))], [0xff, 0xfe]);
    const proto = Tokenizer.train(['__proto__ '.repeat(9)], { vocabSize: 300, pattern: '\\S+' });
    assert.equal(Tokenizer.fromJSON(JSON.parse(JSON.stringify(proto))).encode('__proto__').length, 1);
  });

  it('refuses what cannot be', () => {
    const bad: [object, RegExp][] = [
      [{ vocabSize: 256 }, /a vocabulary of 256 is not possible/],
      [{ vocabSize: 300.5 }, /not possible/],
      [{ vocabSize: 300, specials: ['a'] }, /"a" is also the symbol of a byte/],
      [{ vocabSize: 300, specials: [''] }, /cannot be empty/],
      [{ vocabSize: 300, specials: ['<x>', '<x>'] }, /named twice/],
      [{ vocabSize: 300, minFrequency: -1 }, /minFrequency/],
      [{ vocabSize: 300, pattern: '[a' }, /pattern "\[a" cannot be used/],
    ];
    for (const [options, message] of bad)
      assert.throws(
        () => Tokenizer.train(prose, options as never),
        (error) => error instanceof AnsatzError && message.test(error.message),
      );
  });
});
