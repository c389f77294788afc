/**
 * Text to ids: natively from end to end where the native encoder knows the pattern; otherwise section by section, with
 * normalisation and regular expressions in JavaScript and merges in native code.
 */
import { isAscii } from 'node:buffer';
import { createEncoder, MATCH_ALL, MATCH_NOTHING, type Match, type NativeEncoder } from './addon.ts';
import { symbolsToBytes } from './byte-level.ts';
import { bytesFromText, textFromBytes } from './escaped-text.ts';
import type { TokenizerTables } from './format.ts';
import { WHOLE } from './patterns.ts';
import { splitText } from './splitter.ts';
import { nativeStages } from './stages.ts';

/** Tokens that `ignore_merges` may take whole; control tokens are left out so that text cannot become one. */
function wholeWords(tables: TokenizerTables) {
  const special = new Set(tables.added.filter((token) => token.special).map((token) => token.id));
  const parts: Uint8Array[] = [];
  const ids: number[] = [];
  const ends: number[] = [];
  let end = 0;
  if (tables.ignoreMerges) {
    for (const [token, id] of tables.vocab) {
      const bytes = special.has(id) ? undefined : symbolsToBytes(token);
      if (!bytes) continue;
      parts.push(bytes);
      ids.push(id);
      ends.push((end += bytes.length));
    }
  }
  return { wordBytes: Buffer.concat(parts), wordEnds: Uint32Array.from(ends), wordIds: Uint32Array.from(ids) };
}

export class Encoder {
  private readonly tables: TokenizerTables;
  private readonly core: NativeEncoder;
  private readonly nativeSplit: boolean;

  constructor(tables: TokenizerTables) {
    this.tables = tables;
    const plan = nativeStages(tables.stages);
    this.nativeSplit = plan !== undefined;
    this.core = createEncoder({
      byteIds: tables.byteIds,
      merges: tables.merges,
      pattern: plan?.pattern ?? WHOLE,
      prefix: plan?.prefix ?? 0,
      ...wholeWords(tables),
      added: tables.added.map((token) => ({
        bytes: Buffer.from(token.normalized && tables.nfc ? token.content.normalize('NFC') : token.content, 'utf8'),
        id: token.id,
        normalized: token.normalized,
        singleWord: token.singleWord,
        lstrip: token.lstrip,
        rstrip: token.rstrip,
      })),
    });
  }

  encode(bytes: Uint8Array, match: Match): Int32Array {
    return this.isPlain(bytes) ? this.core.encode(bytes, match) : this.encodeSections(bytes, match);
  }

  encodeBatch(texts: Uint8Array[], match: Match, threads: number): Int32Array[] {
    if (texts.every((bytes) => this.isPlain(bytes))) return this.core.encodeBatch(texts, match, threads);
    return texts.map((bytes) => this.encode(bytes, match));
  }

  async encodeBatchAsync(texts: Uint8Array[], match: Match, threads: number): Promise<Int32Array[]> {
    const plain: number[] = [];
    const results: Int32Array[] = new Array(texts.length);
    for (let k = 0; k < texts.length; k++) {
      if (this.isPlain(texts[k])) {
        plain.push(k);
        continue;
      }
      results[k] = this.encodeSections(texts[k], match);
      await new Promise((resume) => setImmediate(resume)); // a progress bar gets its turn after each document
    }
    const encoded = await this.core.encodeBatchAsync(
      plain.map((k) => texts[k]),
      match,
      threads,
    );
    plain.forEach((k, position) => {
      results[k] = encoded[position];
    });
    return results;
  }

  /** Whether the native encoder can do all of it: known pattern, and nothing for the normalizer to change. */
  private isPlain(bytes: Uint8Array): boolean {
    if (!this.nativeSplit) return false;
    if (!this.tables.nfc || isAscii(bytes)) return true;
    const text = textFromBytes(bytes);
    return text.normalize('NFC') === text;
  }

  private encodeSections(bytes: Uint8Array, match: Match): Int32Array {
    const parts: Int32Array[] = [];
    this.forEachSection(bytes, false, match, parts, (raw) => {
      const text = textFromBytes(raw);
      const normal = this.tables.nfc ? text.normalize('NFC') : text;
      this.forEachSection(normal === text ? raw : bytesFromText(normal), true, match, parts, (section) => {
        if (this.nativeSplit) {
          parts.push(this.core.encode(section, MATCH_NOTHING));
          return;
        }
        const pieces = splitText(this.tables.stages, textFromBytes(section));
        parts.push(this.core.encodePieces(pieces.bytes, pieces.ends));
      });
    });
    const out = new Int32Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      out.set(part, at);
      at += part.length;
    }
    return out;
  }

  private forEachSection(
    bytes: Uint8Array,
    normalized: boolean,
    match: Match,
    parts: Int32Array[],
    onText: (section: Uint8Array) => void,
  ): void {
    if (match !== MATCH_ALL) {
      onText(bytes);
      return;
    }
    const sections = this.core.splitAdded(bytes, normalized);
    for (let k = 0; k < sections.length; k += 3) {
      if (sections[k + 2] >= 0) parts.push(Int32Array.of(sections[k + 2]));
      else onText(bytes.subarray(sections[k], sections[k + 1]));
    }
  }
}
