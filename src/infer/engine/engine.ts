/**
 * Continuous batching (Yu et al. 2022, Orca; Kwon et al. 2023, vLLM): every step computes one pass over rows of all
 * running sequences: a token of those that are decoding, a chunk of the prompts of those that begin, and drafts to be
 * verified. Sequences join and leave between steps. When pages run out, the sequence that came last starts over later.
 */
import { AnsatzError } from '../../backend/errors.ts';
import type { Weights } from '../sampling/distribution.ts';
import { checked } from './admission.ts';
import type { Decoding, EngineStats } from './decoding.ts';
import { Drafts } from './drafts.ts';
import { Memories } from './memories.ts';
import { Pages } from './pages.ts';
import { Parking, paused } from './parking.ts';
import { MAX_ROWS, type Outcome, type Passes, type Row } from './passes.ts';
import {
  type Ask,
  type Draft,
  type Drafting,
  type Finished,
  type FinishReason,
  finishOf,
  type Pick,
  type Request,
  type Sequence,
} from './sequence.ts';

export interface EngineOptions {
  readonly passes: Passes;
  readonly vocab: number;
  /** Longest text, prompt and continuation together. */
  readonly context: number;
  readonly page: number;
  readonly pages: number;
  /** Pages for what encoders read; by default as many as decoders have. */
  readonly memoryPages?: number;
  /** Sequences that run at a time. */
  readonly sequences: number;
  /** Rows of a step at most: how long a prompt may hold up the others. */
  readonly rows?: number;
  /** Tokens drafted at a time. */
  readonly drafts?: number;
  /** A small model that drafts for requests without a drafter of their own. */
  readonly draftModel?: Drafting;
}

/** A sequence's part of a step. */
interface Part {
  readonly sequence: Sequence;
  /** Rows: tokens from `computed` on, then drafts. */
  readonly known: number;
  readonly drafts: Draft;
  /** Where its logits begin among those that the pass gives, and how many there are. */
  readonly first: number;
  readonly logits: number;
  /** How tokens are drawn from them; null: the picker wants them. */
  readonly asks: readonly (Ask | null)[];
}

export class Engine implements Decoding {
  private readonly options: EngineOptions;
  private readonly pages: Pages;
  private readonly memories: Memories | null;
  private readonly waiting: Sequence[] = [];
  private readonly running: Sequence[] = [];
  private readonly slots: number[];
  private loop: Promise<void> | null = null;
  private readonly drafts: Drafts;
  private readonly parking = new Parking(() => this.start());
  private closed = false;
  private counts = { steps: 0, rows: 0, tokens: 0, preemptions: 0, drafted: 0, accepted: 0 };

  constructor(options: EngineOptions) {
    this.options = options;
    this.pages = new Pages(options.pages, options.page);
    this.drafts = new Drafts(options);
    this.memories = options.passes.model.encoder
      ? new Memories(options.passes, options.memoryPages ?? options.pages, options.page)
      : null;
    this.slots = Array.from({ length: options.sequences }, (_, k) => options.sequences - 1 - k);
  }

  submit(request: Request): Promise<Finished> {
    if (this.closed) throw new AnsatzError('the engine is closed');
    const before = checked(request, this.options, this.memories !== null);
    const start = before.length + request.prompt.length;
    return new Promise((resolve, reject) => {
      this.waiting.push({
        request,
        resolve,
        reject,
        tokens: [...before, ...request.prompt],
        before: before.length,
        start,
        computed: 0,
        pages: null,
        memory: null,
        slot: -1,
        cached: 0,
        draft: null,
        drafted: 0,
        accepted: 0,
        scored: 0,
      });
      this.start();
    });
  }

  stats(): EngineStats {
    const { running, waiting, parking, counts, pages } = this;
    const places = { running: running.length, waiting: waiting.length, paused: parking.size };
    return { ...counts, ...places, pages: pages.stats() };
  }

  /** Ends every request and waits for the step in progress. The passes stay the caller's. */
  async close(): Promise<void> {
    this.closed = true;
    await this.loop;
    for (const s of [...this.running, ...this.waiting.splice(0), ...this.parking.clear()]) this.end(s, 'cancelled');
  }

  private get busy(): boolean {
    return !this.closed && (this.running.length > 0 || this.waiting.length > 0 || this.parking.ready);
  }

  private start(): void {
    if (this.busy) this.loop ??= this.run();
  }

  private async run(): Promise<void> {
    try {
      while (this.busy) await this.step();
    } catch (error) {
      // A step that fails takes its requests with it; the engine goes on with the next.
      for (const s of [...this.running, ...this.waiting.splice(0)]) {
        this.free(s);
        s.reject(error as Error);
      }
    } finally {
      this.loop = null;
    }
    this.start();
  }

  private async step(): Promise<void> {
    this.waiting.unshift(...this.parking.leaving());
    for (const s of [...this.running, ...this.waiting]) {
      if (s.request.signal?.aborted) this.end(s, 'cancelled');
      else if (paused(s)) this.park(s);
    }
    const started = performance.now();
    const drafting = await this.drafts.prepare(this.running);
    const { rows, wanted, asks, parts } = this.plan(drafting === true);
    for (const { sequence } of parts) if (sequence.memory) await this.memories!.fill(sequence.memory);
    if (rows.length === 0) return;
    const outcome = await this.options.passes.draw(rows, wanted, asks);
    this.counts.steps++;
    this.counts.rows += rows.length;
    const before = this.counts.tokens;
    for (const part of parts) {
      try {
        this.finish(part, outcome);
      } catch (error) {
        // What a request's own code throws ends that request alone.
        this.free(part.sequence);
        part.sequence.reject(error as Error);
      }
    }
    // Steps that read prompts, or in which nobody could have drafted, say nothing of what drafts are worth.
    if (drafting !== null && parts.every((p) => p.known === 1))
      this.drafts.note(drafting, this.counts.tokens - before, performance.now() - started);
  }

  /** Chooses the rows of the next step. */
  private plan(drafting: boolean): { rows: Row[]; wanted: number[]; asks: (Ask | null)[]; parts: Part[] } {
    const [rows, wanted, asks, parts]: [Row[], number[], (Ask | null)[], Part[]] = [[], [], [], []];
    const limit = Math.min(MAX_ROWS, this.options.rows ?? MAX_ROWS);
    const add = (s: Sequence): boolean => {
      const part = this.part(s, limit - rows.length, wanted.length, drafting);
      if (!part) return false;
      const { ahead = 0, variant } = s.request;
      const all = [...s.tokens.slice(s.computed, s.computed + part.known), ...part.drafts.tokens];
      all.forEach((token, k) => {
        const position = s.computed + k;
        const reach = position < ahead ? ahead - 1 : position;
        rows.push({ token, sequence: s.slot, position, reach, memory: s.memory?.tokens.length ?? 0, variant });
      });
      for (let k = all.length - part.logits; k < all.length; k++) wanted.push(rows.length - all.length + k);
      asks.push(...part.asks);
      parts.push(part);
      return true;
    };
    // Those that run go first, oldest first; whoever finds no page makes the youngest start over.
    for (let k = 0; k < this.running.length && rows.length < limit; k++) {
      const s = this.running[k];
      if (this.room(s, k)) add(s);
    }
    while (rows.length < limit && this.waiting.length > 0 && this.slots.length > 0) {
      const s = this.waiting[0];
      if (!this.admit(s)) break;
      this.waiting.shift();
      this.running.push(s);
      if (!add(s)) break;
    }
    return { rows, wanted, asks, parts };
  }

  /** What a sequence computes in a step that has room for `room` rows. */
  private part(s: Sequence, room: number, first: number, drafting: boolean): Part | null {
    const { context, drafts: most = 0 } = this.options;
    const { request } = s;
    const left = s.tokens.length - s.computed;
    // Tokens that see each other are computed together.
    const together = (request.ahead ?? 0) - s.computed;
    if (together > room) return null;
    // Scoring a prompt wants the logits of all of its rows: few at a time.
    const scoring = request.scorePrompt && s.scored < request.prompt.length;
    let known = Math.min(left, room, scoring ? 64 : room);
    if (!this.grow(s, s.computed + known)) {
      known = s.pages!.pages.length * this.options.page - s.computed;
      if (known <= 0 || together > known) return null;
    }
    const generated = s.tokens.length - s.start;
    const empty = context + s.before - s.tokens.length;
    const space = Math.min(room - known, most, request.maxTokens - generated - 1, empty - 1);
    let drafts: Draft = { tokens: [] };
    if (drafting && known === left && space > 0) {
      drafts = request.drafter
        ? { tokens: request.drafter.draft(s.before ? s.tokens.slice(s.before) : s.tokens, space) }
        : (s.draft ?? drafts);
      if (drafts.tokens.length > space) drafts = { ...drafts, tokens: drafts.tokens.slice(0, space) };
      if (!this.pages.grow(s.pages!, s.computed + known + drafts.tokens.length)) drafts = { tokens: [] };
    }
    s.draft = null;
    this.options.passes.place(s.slot, s.pages!.pages);
    const logits = scoring ? known : known === left ? 1 + drafts.tokens.length : 0;
    // Drafts that were drawn are verified, prompts that are scored are looked at: both want logits.
    const drawn = !scoring && !drafts.weights && request.maxTokens > 0;
    const asks = Array.from({ length: logits }, (_, k) => (drawn ? (request.picker.ask?.(k) ?? null) : null));
    return { sequence: s, known, drafts, first, logits, asks };
  }

  /** Makes sure that a running sequence has a page for its next token. */
  private room(s: Sequence, place: number): boolean {
    while (!this.grow(s, s.computed + 1)) {
      const last = this.running[this.running.length - 1];
      this.running.pop();
      this.preempt(last);
      if (last === s || this.running.length <= place) return false;
    }
    return true;
  }

  private preempt(s: Sequence): void {
    this.free(s);
    s.computed = 0;
    this.counts.preemptions++;
    this.waiting.unshift(s);
  }

  /** Makes room for `tokens` tokens of a sequence, with pages of those that do not run if need be. */
  private grow(s: Sequence, tokens: number, list = s.pages!): boolean {
    while (!this.pages.grow(list, tokens)) if (!this.evict(s)) return false;
    return true;
  }

  /** A sequence that waits for its reader leaves its place, and keeps its pages while nobody needs them. */
  private park(s: Sequence): void {
    this.leave(s);
    s.draft = null;
    this.parking.add(s);
  }

  /** Takes the pages of one that does not run; false when none has any. */
  private evict(but: Sequence): boolean {
    const idle = this.parking.holding() ?? this.waiting.findLast((w) => w !== but && (w.pages || w.memory));
    if (!idle) return false;
    this.drop(idle);
    idle.computed = 0;
    this.counts.preemptions++;
    return true;
  }

  /** Gives a waiting sequence a place, and the pages of what is cached of its text. */
  private admit(s: Sequence): boolean {
    if (s.pages) {
      this.place(s);
      return true;
    }
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
    this.place(s);
    return true;
  }

  private place(s: Sequence): void {
    s.slot = this.slots.pop()!;
    if (s.memory) this.options.passes.place(s.slot, s.memory.pages, true);
  }

  /** Takes what a pass gave to a sequence. */
  private finish(part: Part, { tokens: drawn, logits }: Outcome): void {
    const s = part.sequence;
    const { vocab } = this.options;
    const { request } = s;
    const of = (k: number): Float32Array => logits!.subarray((part.first + k) * vocab, (part.first + k + 1) * vocab);
    const done = s.computed + part.known === s.tokens.length;
    if (request.scorePrompt && s.scored < request.prompt.length) {
      for (let k = 0; k < part.known; k++) {
        const place = s.computed + k + 1 - s.before;
        if (place > 0 && place < request.prompt.length)
          request.scorePrompt(request.prompt[place], place, of(k).slice());
      }
      s.scored = Math.min(request.prompt.length, Math.max(0, s.computed + part.known - s.before));
    }
    s.computed += part.known;
    if (!done) {
      this.publish(s);
      return;
    }
    // A certain draft is right when it is what is picked: exact for any way of picking. One that was drawn is verified.
    const { tokens, weights } = part.drafts;
    const base = part.logits - 1 - tokens.length;
    for (let k = 0; k <= tokens.length; k++) {
      const from = weights && k < tokens.length ? { token: tokens[k], weights: weights[k] } : null;
      const at = base + k;
      const token = part.asks[at] ? drawn[part.first + at] : null;
      if (!this.next(s, token ?? of(at), from)) return;
      if (k === tokens.length) break;
      s.drafted++;
      this.counts.drafted++;
      if (s.tokens[s.tokens.length - 1] !== tokens[k]) break;
      s.accepted++;
      this.counts.accepted++;
      s.computed++; // the draft's state is in its page already
    }
    this.publish(s);
  }

  /** Takes the token that was drawn (-1: nothing may follow), or picks one; false when the sequence has ended. */
  private next(s: Sequence, by: number | Float32Array, draft: { token: number; weights: Weights } | null): boolean {
    const { request } = s;
    if (request.maxTokens === 0) return this.end(s, 'length');
    const { picker } = request;
    let pick: Pick | null;
    if (typeof by === 'number') pick = by < 0 ? null : picker.take!(by);
    else pick = draft && picker.verify ? picker.verify(by, draft.token, draft.weights) : picker.pick(by);
    if (!pick || request.stop?.includes(pick.token)) return this.end(s, 'stop');
    s.tokens.push(pick.token);
    this.counts.tokens++;
    if (request.onToken(pick) === false) return this.end(s, 'stop');
    const own = s.tokens.length - s.before;
    if (s.tokens.length - s.start >= request.maxTokens || own >= this.options.context) return this.end(s, 'length');
    return true;
  }

  private publish(s: Sequence): void {
    if (!(s.request.ahead ?? 0)) this.pages.publish(s.pages!, s.tokens, s.computed);
  }

  private end(s: Sequence, reason: FinishReason): false {
    if (s.pages && reason !== 'cancelled') this.publish(s);
    this.free(s);
    s.resolve(finishOf(s, reason));
    return false;
  }

  private free(s: Sequence): void {
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
