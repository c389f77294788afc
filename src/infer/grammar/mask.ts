/**
 * Which tokens may come: those whose bytes the grammar can go on with. Tokens are walked in the order of their bytes, so
 * that a beginning they share is walked once, and one that fails is skipped with all that begin so.
 */
import { AnsatzError } from '../../backend/errors.ts';
import type { Tokenizer } from '../../data/tokenizer/index.ts';
import type { TokenMask } from '../sampling/index.ts';
import { type Automaton, DEAD } from './automaton.ts';

/** What may come of an answer, and how it stands. */
export interface AnswerMask extends TokenMask {
  /** Whether the text so far may end here. */
  readonly complete: boolean;
  /** Whether a grammar says what comes next. */
  readonly bound: boolean;
}

export interface TableOptions {
  /** Ids that the model has, tokens or not. */
  readonly vocab?: number;
  /** Tokens that end a text, beside the end of texts: they may come when it is complete. */
  readonly ends?: readonly number[];
  /** Special tokens that stand for their names, as parts of texts. */
  readonly spelled?: ReadonlySet<string>;
}

/** A tokenizer's tokens in the order of their bytes. */
export class TokenTable {
  readonly size: number;
  readonly ends: readonly number[];
  readonly ids: Int32Array;
  readonly bytes: readonly Uint8Array[];
  /** Where a token stands in that order; -1 for those without bytes. */
  readonly place: Int32Array;
  /** How many bytes a token shares with the one before it. */
  readonly shared: Uint16Array;

  private readonly tokenizer: Tokenizer;

  constructor(tokenizer: Tokenizer, o: TableOptions = {}) {
    const { vocab = tokenizer.vocabSize, ends = [], spelled } = o;
    this.size = vocab;
    this.ends = [...new Set([tokenizer.eot, ...ends])];
    this.tokenizer = tokenizer;
    const special = new Set([...tokenizer.specialIds].flatMap(([name, id]) => (spelled?.has(name) ? [] : [id])));
    const all: { id: number; bytes: Uint8Array }[] = [];
    for (let id = 0; id < tokenizer.vocabSize; id++) {
      if (special.has(id)) continue;
      const bytes = tokenizer.decodeBytes([id]);
      if (bytes.length > 0) all.push({ id, bytes });
    }
    all.sort((a, b) => Buffer.compare(a.bytes, b.bytes) || a.id - b.id);
    this.ids = Int32Array.from(all, (t) => t.id);
    this.bytes = all.map((t) => t.bytes);
    this.place = new Int32Array(Math.max(vocab, tokenizer.vocabSize)).fill(-1);
    this.ids.forEach((id, k) => {
      this.place[id] = k;
    });
    this.shared = Uint16Array.from(all, (t, k) => (k === 0 ? 0 : common(all[k - 1].bytes, t.bytes)));
  }

  /** What a token adds to a text, special or not. */
  bytesOf(id: number): Uint8Array {
    return id < this.tokenizer.vocabSize ? this.tokenizer.decodeBytes([id]) : new Uint8Array(0);
  }
}

function common(a: Uint8Array, b: Uint8Array): number {
  let n = 0;
  while (n < a.length && n < b.length && a[n] === b[n]) n++;
  return n;
}

/** A grammar for one tokenizer: masks are made once a state and shared by all requests with the same grammar. */
export class Grammar {
  readonly automaton: Automaton;
  readonly table: TokenTable;
  private readonly masks = new Map<number, Uint32Array>();
  /** States whose masks are kept. */
  private readonly most: number;

  constructor(automaton: Automaton, table: TokenTable, most = 4096) {
    [this.automaton, this.table, this.most] = [automaton, table, most];
  }

  /** Bits of the tokens that may come in a state. */
  mask(state: number): Uint32Array {
    const known = this.masks.get(state);
    if (known) return known;
    const { table, automaton } = this;
    const mask = new Uint32Array(Math.ceil(table.size / 32));
    const stack: number[] = [state];
    // Bytes of the present token that have been walked; beyond them lies a failure.
    let walked = 0;
    let failed = false;
    for (let k = 0; k < table.ids.length; k++) {
      const shared = table.shared[k];
      if (failed && shared > walked) continue;
      const bytes = table.bytes[k];
      walked = Math.min(walked, shared);
      failed = false;
      while (walked < bytes.length) {
        const next = automaton.step(stack[walked], bytes[walked]);
        if (next === DEAD) {
          failed = true;
          break;
        }
        stack[++walked] = next;
      }
      if (!failed) mask[table.ids[k] >> 5] |= 1 << (table.ids[k] & 31);
    }
    if (automaton.accepts(state)) for (const end of table.ends) mask[end >> 5] |= 1 << (end & 31);
    if (this.masks.size >= this.most) this.masks.delete(this.masks.keys().next().value!);
    this.masks.set(state, mask);
    return mask;
  }

  /** A request's place in the grammar. */
  begin(): GrammarMask {
    return new GrammarMask(this);
  }
}

export class GrammarMask implements AnswerMask {
  readonly bound = true;
  private readonly grammar: Grammar;
  private state: number;
  private ended = false;

  constructor(grammar: Grammar) {
    this.grammar = grammar;
    this.state = grammar.automaton.start;
  }

  /** Whether the text so far is complete. */
  get complete(): boolean {
    return this.grammar.automaton.accepts(this.state);
  }

  restrict(logits: Float32Array): void {
    if (this.ended) {
      logits.fill(Number.NEGATIVE_INFINITY);
      return;
    }
    const mask = this.grammar.mask(this.state);
    for (let w = 0; w < mask.length; w++) {
      const bits = mask[w];
      if (bits === 0xffffffff) continue;
      const end = Math.min(logits.length, 32 * w + 32);
      for (let id = 32 * w; id < end; id++) if (!((bits >>> (id & 31)) & 1)) logits[id] = Number.NEGATIVE_INFINITY;
    }
    logits.fill(Number.NEGATIVE_INFINITY, Math.min(logits.length, mask.length * 32));
  }

  advance(token: number): void {
    const { table } = this.grammar;
    if (table.ends.includes(token)) {
      this.ended = true;
      return;
    }
    const at = table.place[token] ?? -1;
    if (at < 0) throw new AnsatzError(`token ${token} has no bytes: it cannot be part of a constrained text`);
    this.feed(table.bytes[at]);
  }

  /** Bytes have come. */
  feed(bytes: Uint8Array): void {
    const { automaton } = this.grammar;
    for (const b of bytes) {
      this.state = this.state === DEAD ? DEAD : automaton.step(this.state, b);
      if (this.state === DEAD) throw new AnsatzError('a token that the grammar does not allow was picked');
    }
  }
}
