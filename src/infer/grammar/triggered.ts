/**
 * Any text until a word comes, a grammar from there on. Where a token would complete the word and go on with something
 * that the grammar does not allow, it may not come: nothing can be repaired afterwards.
 */
import { DEAD } from './automaton.ts';
import type { AnswerMask, Grammar, GrammarMask } from './mask.ts';

/** States of the word: how much of it has come. `over`: it cannot come any more. */
const over = -1;

export class TriggeredGrammar {
  readonly rest: Grammar;
  private readonly word: Uint8Array;
  private readonly atStart: boolean;
  /** By bytes of the word: the longest end of it that begins it again (Knuth, Morris, Pratt 1977). */
  private readonly back: Int32Array;
  private readonly wrong = new Map<number, Int32Array>();

  /** @param rest what follows the word; `atStart`: the word counts only where the text begins */
  constructor(word: string, atStart: boolean, rest: Grammar) {
    [this.word, this.atStart, this.rest] = [Buffer.from(word, 'utf8'), atStart, rest];
    this.back = new Int32Array(this.word.length);
    for (let k = 1, n = 0; k < this.word.length; k++) {
      while (n > 0 && this.word[k] !== this.word[n]) n = this.back[n - 1];
      if (this.word[k] === this.word[n]) n++;
      this.back[k] = n;
    }
  }

  begin(): AnswerMask {
    return new TriggeredMask(this);
  }

  /** How much of the word has come after another byte. */
  step(matched: number, byte: number): number {
    const { word, atStart, back } = this;
    if (matched === over) return over;
    if (atStart) {
      if (word[matched] === byte) return matched + 1;
      return matched === 0 && (byte === 0x20 || (byte >= 0x09 && byte <= 0x0d)) ? 0 : over;
    }
    let n = matched;
    while (n > 0 && word[n] !== byte) n = back[n - 1];
    return word[n] === byte ? n + 1 : 0;
  }

  /** Runs a token: how much of the word has come, and where in the token it was complete. */
  run(matched: number, bytes: Uint8Array): { matched: number; done: number | null } {
    let n = matched;
    for (let k = 0; k < bytes.length; k++) {
      n = this.step(n, bytes[k]);
      if (n === this.word.length) return { matched: n, done: k + 1 };
    }
    return { matched: n, done: null };
  }

  /** Tokens that would complete the word and spoil what follows. */
  spoiling(matched: number): Int32Array {
    const known = this.wrong.get(matched);
    if (known) return known;
    const { table, automaton } = this.rest;
    const found: number[] = [];
    for (let id = 0; id < table.size; id++) {
      const bytes = table.bytesOf(id);
      const { done } = this.run(matched, bytes);
      if (done === null) continue;
      let state = automaton.start;
      for (let k = done; k < bytes.length && state !== DEAD; k++) state = automaton.step(state, bytes[k]);
      if (state === DEAD) found.push(id);
    }
    const wrong = Int32Array.from(found);
    this.wrong.set(matched, wrong);
    return wrong;
  }
}

class TriggeredMask implements AnswerMask {
  private readonly grammar: TriggeredGrammar;
  private matched = 0;
  private inner: GrammarMask | null = null;

  constructor(grammar: TriggeredGrammar) {
    this.grammar = grammar;
  }

  get complete(): boolean {
    return this.inner ? this.inner.complete : true;
  }

  get bound(): boolean {
    return this.inner !== null;
  }

  restrict(logits: Float32Array): void {
    if (this.inner) this.inner.restrict(logits);
    else if (this.matched !== over)
      for (const id of this.grammar.spoiling(this.matched))
        if (id < logits.length) logits[id] = Number.NEGATIVE_INFINITY;
  }

  advance(token: number): void {
    if (this.inner) {
      this.inner.advance(token);
      return;
    }
    const { rest } = this.grammar;
    const bytes = rest.table.bytesOf(token);
    const { matched, done } = this.grammar.run(this.matched, bytes);
    this.matched = matched;
    if (done === null) return;
    this.inner = rest.begin();
    this.inner.feed(bytes.subarray(done));
  }
}
