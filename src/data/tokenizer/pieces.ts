/**
 * Tokenizers over pieces of text rather than bytes: Unigram and byte-fallback BPE, where a space is written U+2581
 * (SentencePiece; T5, Llama 2, Mistral). The algorithm is `@huggingface/tokenizers`' own, an optional package: models
 * trained here do not need it.
 */
import { createRequire } from 'node:module';
import { AnsatzError } from '../../backend/errors.ts';
import { MATCH_ALL, type Match } from './addon.ts';
import type { Codec } from './codec.ts';
import { type AddedToken, parseAdded, parseVocab } from './format.ts';
import { bad, isObject, type JsonObject, show } from './json.ts';
import { parseTemplate } from './template.ts';

const SPACE = '\u2581';

/** What is used of the package. */
interface Peer {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] };
}
type PeerClass = new (json: object, config: object) => Peer;

/** Whether a tokenizer.json is of this kind. */
export function usesPieces(json: unknown): boolean {
  if (!isObject(json) || !isObject(json.model)) return false;
  const { type, byte_fallback: fallback } = json.model;
  if (type === 'Unigram') return true;
  return (type === 'BPE' || type === undefined) && (fallback === true || usesMetaspace(json.pre_tokenizer));
}

const usesMetaspace = (step: unknown): boolean =>
  isObject(step) &&
  (step.type === 'Metaspace' || (Array.isArray(step.pretokenizers) && step.pretokenizers.some(usesMetaspace)));

function load(): PeerClass {
  try {
    return (createRequire(import.meta.url)('@huggingface/tokenizers') as { Tokenizer: PeerClass }).Tokenizer;
  } catch (cause) {
    throw new AnsatzError(
      'tokenizer.json: it is of the SentencePiece kind, which needs a package that is not installed',
      {
        hint: 'npm install @huggingface/tokenizers',
        cause,
      },
    );
  }
}

/** Vocabulary of the model: an object, or a list of pieces with scores. */
function vocabOf(model: JsonObject): Map<string, number> {
  if (model.type !== 'Unigram') return parseVocab(model.vocab);
  if (model.byte_fallback === true) bad('a Unigram model with byte_fallback is not supported');
  const { vocab, unk_id: unknown } = model;
  if (!Array.isArray(vocab) || vocab.length === 0) bad('model.vocab is not a list of pieces');
  if (!Number.isInteger(unknown) || (unknown as number) < 0 || (unknown as number) >= vocab.length)
    bad(`model.unk_id is ${show(unknown)}, not the id of a piece`);
  const ids = new Map<string, number>();
  vocab.forEach((entry: unknown, id) => {
    if (!Array.isArray(entry) || typeof entry[0] !== 'string' || typeof entry[1] !== 'number')
      bad(`piece ${id} is ${show(entry)}, not a text with a score`);
    if (ids.has(entry[0])) bad(`the piece ${show(entry[0])} is there twice`);
    ids.set(entry[0], id);
  });
  return ids;
}

/** Decoders whose work is what bytesOf() and decode() do. */
function checkDecoder(decoder: unknown): void {
  const steps = isObject(decoder) && Array.isArray(decoder.decoders) ? decoder.decoders : [decoder];
  for (const step of steps) {
    if (!isObject(step) || !['Metaspace', 'Replace', 'ByteFallback', 'Fuse', 'Strip'].includes(step.type as string))
      bad(`the decoder ${show(isObject(step) ? step.type : step)} is not supported with pieces of text`);
    if (step.type === 'Metaspace' && (step.replacement ?? SPACE) !== SPACE)
      bad(`spaces are written ${show(step.replacement)}, only U+2581 is supported`);
  }
}

/**
 * Whether decoding takes away a space that encoding puts before a text. Where nothing is put there (Yi, Gemma), a space
 * that begins a text is the text's own.
 */
function takesSpace(decoder: unknown): boolean {
  if (!isObject(decoder)) return false;
  if (Array.isArray(decoder.decoders)) return decoder.decoders.some(takesSpace);
  if (decoder.type === 'Strip') return decoder.content === ' ' && Number(decoder.start) > 0;
  return decoder.type === 'Metaspace' && decoder.prepend_scheme !== 'never' && decoder.add_prefix_space !== false;
}

/** The same model for text in which no token's name means anything: names of control tokens cannot occur in text. */
function withoutAdded(json: JsonObject, added: readonly AddedToken[]): JsonObject {
  const model = json.model as JsonObject;
  const special = new Map(added.filter((t) => t.special).map((t) => [t.content, t.id]));
  if (model.type === 'Unigram') {
    // An unpaired surrogate never comes out of UTF-8.
    const vocab = (model.vocab as [string, number][]).map(([piece, score]): [string, number] =>
      special.has(piece) ? [`\ud800${special.get(piece)}`, score] : [piece, score],
    );
    return { ...json, added_tokens: [], model: { ...model, vocab } };
  }
  const joined = (merge: unknown): string => (Array.isArray(merge) ? merge.join('') : String(merge).replace(' ', ''));
  const merges = (model.merges as JsonObject[]).filter((merge) => !special.has(joined(merge)));
  return { ...json, added_tokens: [], model: { ...model, merges } };
}

export function pieceCodec(json: JsonObject): Codec {
  const model = json.model as JsonObject;
  const vocab = vocabOf(model);
  if (model.type !== 'Unigram' && !Array.isArray(model.merges)) bad('model.merges is not a list');
  const added = parseAdded(json.added_tokens, vocab);
  checkDecoder(json.decoder);
  const template = parseTemplate(json.post_processor, vocab, added);
  const PeerTokenizer = load();
  const whole = { normalizer: null, pre_tokenizer: null, added_tokens: [], ...json, post_processor: null };
  const make = (from: object): Peer => {
    try {
      return new PeerTokenizer(from, { clean_up_tokenization_spaces: false });
    } catch (cause) {
      return bad(`@huggingface/tokenizers does not take it: ${(cause as Error).message}`);
    }
  };
  const matching = make(whole);
  let plain: Peer | undefined;
  const encode = (bytes: Uint8Array, match: Match): Int32Array => {
    const text = new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes);
    if (text === '') return new Int32Array(0);
    const peer = match === MATCH_ALL ? matching : (plain ??= make(withoutAdded(whole, added)));
    return Int32Array.from(peer.encode(text, { add_special_tokens: false }).ids);
  };
  const byteTokens = model.byte_fallback === true;
  return {
    ...{ vocab, added, template },
    leadingSpace: takesSpace(json.decoder),
    encode,
    encodeBatch: (texts, match) => texts.map((t) => encode(t, match)),
    encodeBatchAsync: async (texts, match) => {
      const out: Int32Array[] = [];
      for (const text of texts) {
        out.push(encode(text, match));
        await new Promise((resume) => setImmediate(resume));
      }
      return out;
    },
    bytesOf: (piece) => {
      const byte = byteTokens ? /^<0x([0-9A-F]{2})>$/.exec(piece) : null;
      return byte ? Uint8Array.of(Number.parseInt(byte[1], 16)) : Buffer.from(piece.replaceAll(SPACE, ' '), 'utf8');
    },
  };
}
