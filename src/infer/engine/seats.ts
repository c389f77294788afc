/**
 * Who runs, who waits, and what each holds of the cache: a place in passes, pages, and the text that an encoder has
 * read. When pages run out, those that do not run give theirs first; then the sequence that came last starts over.
 */
import { Memories } from './memories.ts';
import { Pages } from './pages.ts';
import { Parking } from './parking.ts';
import type { Passes } from './passes.ts';
import type { Drafting, Sequence } from './sequence.ts';

export interface SeatOptions {
  readonly passes: Passes;
  readonly page: number;
  readonly pages: number;
  readonly memoryPages?: number;
  readonly sequences: number;
  readonly draftModel?: Drafting;
}

export class Seats {
  readonly waiting: Sequence[] = [];
  readonly running: Sequence[] = [];
  readonly parking: Parking;
  readonly pages: Pages;
  readonly memories: Memories | null;
  preemptions = 0;
  private readonly options: SeatOptions;
  private readonly slots: number[];

  /** @param wake called when a sequence that was parked may go on */
  constructor(options: SeatOptions, wake: () => void) {
    const { passes, page, pages, memoryPages = pages, sequences } = options;
    this.options = options;
    this.parking = new Parking(wake);
    this.pages = new Pages(pages, page);
    this.memories = passes.model.encoder ? new Memories(passes, memoryPages, page) : null;
    this.slots = Array.from({ length: sequences }, (_, k) => sequences - 1 - k);
  }

  /** Whether somebody could run. */
  get busy(): boolean {
    return this.running.length > 0 || this.waiting.length > 0 || this.parking.ready;
  }

  get full(): boolean {
    return this.slots.length === 0;
  }

  /** Gives the first that waits a place, and the pages of what is cached of its text; null when there is no room. */
  admit(): Sequence | null {
    const s = this.waiting[0];
    if (!s.pages && !this.begin(s)) return null;
    s.slot = this.slots.pop()!;
    if (s.memory) this.options.passes.place(s.slot, s.memory.pages, true);
    this.waiting.shift();
    this.running.push(s);
    return s;
  }

  private begin(s: Sequence): boolean {
    // Tokens that see each other depend on text after them: nothing of it can be shared.
    const alone = (s.request.ahead ?? 0) > 0 || s.request.scorePrompt !== undefined;
    const { encoder, variant = 0 } = s.request;
    const reads = encoder !== undefined && encoder.length > 0;
    let memory = reads ? this.memories!.take(encoder, variant) : null;
    while (reads && !memory) {
      if (!this.evict(s)) return false;
      memory = this.memories!.take(encoder, variant);
    }
    // What a decoder makes of its tokens depends on the text that it looks at, and on whose parameters it has.
    const salt = variant === 0 ? memory?.key : `${variant}/${memory?.key ?? ''}`;
    const { list, cached } = this.pages.begin(alone ? [] : s.tokens, salt);
    if (!this.grow(s, Math.max(cached + 1, s.request.ahead ?? 0), list)) {
      this.pages.release(list);
      if (memory) this.memories!.leave(memory);
      return false;
    }
    s.memory = memory;
    s.pages = list;
    s.computed = cached;
    if (s.tokens.length === s.start) s.cached = Math.max(0, cached - s.before);
    return true;
  }

  /** Makes sure that the running sequence at `place` has a page for its next token; false when it had to leave. */
  room(s: Sequence, place: number): boolean {
    while (!this.grow(s, s.computed + 1)) {
      const last = this.running[this.running.length - 1];
      this.running.pop();
      this.free(last);
      last.computed = 0;
      this.preemptions++;
      this.waiting.unshift(last);
      if (last === s || this.running.length <= place) return false;
    }
    return true;
  }

  /** Makes room for `tokens` tokens of a sequence, with pages of those that do not run if need be. */
  grow(s: Sequence, tokens: number, list = s.pages!): boolean {
    while (!this.pages.grow(list, tokens)) if (!this.evict(s)) return false;
    return true;
  }

  /** Takes the pages of one that does not run; false when none has any. */
  private evict(but: Sequence): boolean {
    const idle = this.parking.holding() ?? this.waiting.findLast((w) => w !== but && (w.pages || w.memory));
    if (!idle) return false;
    this.drop(idle);
    idle.computed = 0;
    this.preemptions++;
    return true;
  }

  /** A sequence that waits for its reader leaves its place, and keeps its pages while nobody needs them. */
  park(s: Sequence): void {
    this.leave(s);
    s.draft = null;
    this.parking.add(s);
  }

  /** Lets others begin with what a sequence has computed. */
  publish(s: Sequence): void {
    if (!(s.request.ahead ?? 0)) this.pages.publish(s.pages!, s.tokens, s.computed);
  }

  free(s: Sequence): void {
    this.leave(s);
    this.drop(s);
  }

  /** Gives back what a sequence has computed. */
  private drop(s: Sequence): void {
    if (s.pages) this.pages.release(s.pages);
    if (s.memory) this.memories!.leave(s.memory);
    s.pages = null;
    s.memory = null;
  }

  /** Gives back a sequence's place among those that run. */
  private leave(s: Sequence): void {
    if (s.slot >= 0) this.slots.push(s.slot);
    this.options.draftModel?.forget(s);
    s.slot = -1;
    for (const list of [this.running, this.waiting]) {
      const at = list.indexOf(s);
      if (at >= 0) list.splice(at, 1);
    }
  }
}
