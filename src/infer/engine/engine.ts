/**
 * Continuous batching (Yu et al. 2022, Orca; Kwon et al. 2023, vLLM): every step computes one pass over rows of all
 * running sequences: a token of those that are decoding, a chunk of the prompts of those that begin, and drafts to be
 * verified. Sequences join and leave between steps.
 */
import { AnsatzError } from '../../backend/errors.ts';
import type { Weights } from '../sampling/distribution.ts';
import { checked } from './admission.ts';
import type { Decoding, EngineStats } from './decoding.ts';
import { Drafts } from './drafts.ts';
import { paused } from './parking.ts';
import { MAX_ROWS, type Outcome, type Passes, type Row } from './passes.ts';
import { Seats } from './seats.ts';
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
  private readonly seats: Seats;
  private loop: Promise<void> | null = null;
  private readonly drafts: Drafts;
  private closed = false;
  private counts = { steps: 0, rows: 0, tokens: 0, drafted: 0, accepted: 0 };

  constructor(options: EngineOptions) {
    this.options = options;
    this.drafts = new Drafts(options);
    this.seats = new Seats(options, () => this.start());
  }

  submit(request: Request): Promise<Finished> {
    if (this.closed) throw new AnsatzError('the engine is closed');
    const before = checked(request, this.options, this.seats.memories !== null);
    const start = before.length + request.prompt.length;
    return new Promise((resolve, reject) => {
      this.seats.waiting.push({
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
    const { running, waiting, parking, pages, preemptions } = this.seats;
    const places = { running: running.length, waiting: waiting.length, paused: parking.size };
    return { ...this.counts, ...places, preemptions, pages: pages.stats() };
  }

  /** Ends every request and waits for the step in progress. The passes stay the caller's. */
  async close(): Promise<void> {
    this.closed = true;
    await this.loop;
    const { running, waiting, parking } = this.seats;
    for (const s of [...running, ...waiting.splice(0), ...parking.clear()]) this.end(s, 'cancelled');
  }

  private get busy(): boolean {
    return !this.closed && this.seats.busy;
  }

  private start(): void {
    if (this.busy) this.loop ??= this.run();
  }

  private async run(): Promise<void> {
    try {
      while (this.busy) await this.step();
    } catch (error) {
      // A step that fails takes its requests with it; the engine goes on with the next.
      for (const s of [...this.seats.running, ...this.seats.waiting.splice(0)]) {
        this.seats.free(s);
        s.reject(error as Error);
      }
    } finally {
      this.loop = null;
    }
    this.start();
  }

  private async step(): Promise<void> {
    const { running, waiting, parking, memories } = this.seats;
    waiting.unshift(...parking.leaving());
    for (const s of [...running, ...waiting]) {
      if (s.request.signal?.aborted) this.end(s, 'cancelled');
      else if (paused(s)) this.seats.park(s);
    }
    const started = performance.now();
    const drafting = await this.drafts.prepare(running);
    const { rows, wanted, asks, parts } = this.plan(drafting === true);
    for (const { sequence } of parts) if (sequence.memory) await memories!.fill(sequence.memory);
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
        this.seats.free(part.sequence);
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
    const { running, waiting } = this.seats;
    for (let k = 0; k < running.length && rows.length < limit; k++) {
      const s = running[k];
      if (this.seats.room(s, k)) add(s);
    }
    while (rows.length < limit && waiting.length > 0 && !this.seats.full) {
      const s = this.seats.admit();
      if (!s || !add(s)) break;
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
    if (!this.seats.grow(s, s.computed + known)) {
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
      if (!this.seats.pages.grow(s.pages!, s.computed + known + drafts.tokens.length)) drafts = { tokens: [] };
    }
    s.draft = null;
    this.options.passes.place(s.slot, s.pages!.pages);
    const logits = scoring ? known : known === left ? 1 + drafts.tokens.length : 0;
    // Drafts that were drawn are verified, prompts that are scored are looked at: both want logits.
    const drawn = !scoring && !drafts.weights && request.maxTokens > 0;
    const asks = Array.from({ length: logits }, (_, k) => (drawn ? (request.picker.ask?.(k) ?? null) : null));
    return { sequence: s, known, drafts, first, logits, asks };
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
      this.seats.publish(s);
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
    this.seats.publish(s);
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

  private end(s: Sequence, reason: FinishReason): false {
    if (s.pages && reason !== 'cancelled') this.seats.publish(s);
    this.seats.free(s);
    s.resolve(finishOf(s, reason));
    return false;
  }
}
