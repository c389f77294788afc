/**
 * Continuous batching (Yu et al. 2022, Orca; Kwon et al. 2023, vLLM): every step computes one pass over rows of all
 * running sequences: a token of those that are decoding, a chunk of the prompts of those that begin, and drafts to be
 * verified. Sequences join and leave between steps. When pages run out, the sequence that came last starts over later.
 */
import { AnsatzError } from '../../backend/errors.ts';
import type { Weights } from '../sampling/distribution.ts';
import { Governor } from '../speculation/governor.ts';
import { Memories } from './memories.ts';
import { type PageStats, Pages } from './pages.ts';
import { MAX_ROWS, type Passes, type Row } from './passes.ts';
import {
  type Draft,
  type Drafting,
  type Finished,
  type FinishReason,
  finishOf,
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

export interface EngineStats {
  readonly steps: number;
  readonly rows: number;
  readonly tokens: number;
  readonly running: number;
  readonly waiting: number;
  readonly preemptions: number;
  readonly drafted: number;
  readonly accepted: number;
  readonly pages: PageStats;
}

/** Something that serves requests. */
export interface Decoding {
  /**
   * Serves a request; settles when it has ended.
   * @throws AnsatzError at once when it can never fit.
   */
  submit(request: Request): Promise<Finished>;
  stats(): EngineStats;
  /** Ends every request and waits for the step in progress. */
  close(): Promise<void>;
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
}

export class Engine implements Decoding {
  private readonly options: EngineOptions;
  private readonly pages: Pages;
  private readonly memories: Memories | null;
  private readonly waiting: Sequence[] = [];
  private readonly running: Sequence[] = [];
  private readonly slots: number[];
  private loop: Promise<void> | null = null;
  private readonly governor = new Governor();
  private closed = false;
  private counts = { steps: 0, rows: 0, tokens: 0, preemptions: 0, drafted: 0, accepted: 0 };

  constructor(options: EngineOptions) {
    this.options = options;
    this.pages = new Pages(options.pages, options.page);
    this.memories = options.passes.model.encoder
      ? new Memories(options.passes, options.memoryPages ?? options.pages, options.page)
      : null;
    this.slots = Array.from({ length: options.sequences }, (_, k) => options.sequences - 1 - k);
  }

  submit(request: Request): Promise<Finished> {
    const { context, page, pages } = this.options;
    const { prompt } = request;
    if (this.closed) throw new AnsatzError('the engine is closed');
    if (prompt.length === 0) throw new AnsatzError('a prompt needs at least one token');
    if (prompt.length >= context)
      throw new AnsatzError(`a prompt of ${prompt.length} tokens leaves no room in a context of ${context}`, {
        hint: 'shorten the prompt',
      });
    const before = this.options.passes.model.encoder?.before ? (request.encoder ?? []) : [];
    const start = before.length + prompt.length;
    if (Math.ceil((start + 1) / page) > pages)
      throw new AnsatzError(`a prompt of ${start} tokens does not fit the cache`, {
        hint: 'give the cache more memory',
      });
    if (request.encoder && !this.memories) throw new AnsatzError('this model has no encoder');
    if ((request.encoder?.length ?? 0) > context)
      throw new AnsatzError(`a text of ${request.encoder!.length} tokens for an encoder with a context of ${context}`);
    if ((request.ahead ?? 0) > MAX_ROWS)
      throw new AnsatzError(`${request.ahead} tokens that see each other are more than one pass takes (${MAX_ROWS})`);
    return new Promise((resolve, reject) => {
      this.waiting.push({
        request,
        resolve,
        reject,
        tokens: [...before, ...prompt],
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
      this.loop ??= this.run();
    });
  }

  stats(): EngineStats {
    const { running, waiting, counts, pages } = this;
    return { ...counts, running: running.length, waiting: waiting.length, pages: pages.stats() };
  }

  /** Ends every request and waits for the step in progress. The passes stay the caller's. */
  async close(): Promise<void> {
    this.closed = true;
    await this.loop;
    for (const s of [...this.running, ...this.waiting.splice(0)]) this.end(s, 'cancelled');
  }

  private async run(): Promise<void> {
    try {
      while (!this.closed && (this.running.length > 0 || this.waiting.length > 0)) await this.step();
    } catch (error) {
      // A step that fails takes its requests with it; the engine goes on with the next.
      for (const s of [...this.running, ...this.waiting.splice(0)]) {
        this.free(s);
        s.reject(error as Error);
      }
    } finally {
      this.loop = null;
    }
    if (!this.closed && (this.running.length > 0 || this.waiting.length > 0)) this.loop ??= this.run();
  }

  private async step(): Promise<void> {
    for (const s of [...this.running, ...this.waiting]) if (s.request.signal?.aborted) this.end(s, 'cancelled');
    const started = performance.now();
    const drafting = await this.prepareDrafts();
    const { rows, wanted, parts } = this.plan(drafting === true);
    for (const { sequence } of parts) if (sequence.memory) await this.memories!.fill(sequence.memory);
    if (rows.length === 0) return;
    const logits = await this.options.passes.run(rows, wanted);
    this.counts.steps++;
    this.counts.rows += rows.length;
    const before = this.counts.tokens;
    for (const part of parts) {
      try {
        this.finish(part, logits);
      } catch (error) {
        // What a request's own code throws ends that request alone.
        this.free(part.sequence);
        part.sequence.reject(error as Error);
      }
    }
    // Steps that read prompts, or in which nobody could have drafted, say nothing of what drafts are worth.
    if (drafting !== null && parts.every((p) => p.known === 1))
      this.governor.note(drafting, this.counts.tokens - before, performance.now() - started);
  }

  /** Asks for drafts of the sequences that are decoding, when drafting pays; whether it does. Null: nobody can draft. */
  private async prepareDrafts(): Promise<boolean | null> {
    const { drafts = 0, draftModel, context } = this.options;
    const decoding = this.running.filter((s) => s.tokens.length - s.computed === 1);
    const able = draftModel ? decoding.length : decoding.filter((s) => s.request.drafter).length;
    if (drafts === 0 || able === 0) return null;
    if (!this.governor.wants(decoding.length)) return false;
    if (!draftModel) return true;
    const asking = decoding.filter((s) => !s.request.drafter && !s.request.encoder);
    const requests = asking.map((s) => ({
      key: s,
      tokens: s.tokens,
      sampling: s.request.picker.shape ?? { temperature: 0 },
      most: Math.max(0, Math.min(drafts, context + s.before - s.tokens.length - 1)),
    }));
    const made = requests.length > 0 ? await draftModel.draft(requests, drafts) : [];
    made.forEach((d, k) => {
      // Who cannot verify a distribution compares: the draft then counts as certain.
      asking[k].draft = asking[k].request.picker.verify ? d : { tokens: d.tokens };
    });
    return true;
  }

  /** Chooses the rows of the next step. */
  private plan(drafting: boolean): { rows: Row[]; wanted: number[]; parts: Part[] } {
    const [rows, wanted, parts]: [Row[], number[], Part[]] = [[], [], []];
    const limit = Math.min(MAX_ROWS, this.options.rows ?? MAX_ROWS);
    const add = (s: Sequence): boolean => {
      const part = this.part(s, limit - rows.length, wanted.length, drafting);
      if (!part) return false;
      const { ahead = 0 } = s.request;
      const all = [...s.tokens.slice(s.computed, s.computed + part.known), ...part.drafts.tokens];
      all.forEach((token, k) => {
        const position = s.computed + k;
        const reach = position < ahead ? ahead - 1 : position;
        rows.push({ token, sequence: s.slot, position, reach, memory: s.memory?.tokens.length ?? 0 });
      });
      for (let k = all.length - part.logits; k < all.length; k++) wanted.push(rows.length - all.length + k);
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
    return { rows, wanted, parts };
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
    if (!this.pages.grow(s.pages!, s.computed + known)) {
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
    return { sequence: s, known, drafts, first, logits };
  }

  /** Makes sure that a running sequence has a page for its next token. */
  private room(s: Sequence, place: number): boolean {
    while (!this.pages.grow(s.pages!, s.computed + 1)) {
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

  /** Gives a waiting sequence a place, and the pages of what is cached of its text. */
  private admit(s: Sequence): boolean {
    // Tokens that see each other depend on text after them: nothing of it can be shared.
    const alone = (s.request.ahead ?? 0) > 0 || s.request.scorePrompt !== undefined;
    const { encoder } = s.request;
    const memory = encoder && encoder.length > 0 ? this.memories!.take(encoder) : null;
    if (encoder && encoder.length > 0 && !memory) return false;
    // What a decoder makes of its tokens depends on the text that it looks at.
    const { list, cached } = this.pages.begin(alone ? [] : s.tokens, memory?.key);
    if (!this.pages.grow(list, Math.max(cached + 1, s.request.ahead ?? 0))) {
      this.pages.release(list);
      if (memory) this.memories!.leave(memory);
      return false;
    }
    s.memory = memory;
    s.pages = list;
    s.computed = cached;
    if (s.tokens.length === s.start) s.cached = Math.max(0, cached - s.before);
    s.slot = this.slots.pop()!;
    if (memory) this.options.passes.place(s.slot, memory.pages, true);
    return true;
  }

  /** Takes what a pass gave to a sequence. */
  private finish(part: Part, logits: Float32Array): void {
    const s = part.sequence;
    const { vocab } = this.options;
    const { request } = s;
    const of = (k: number): Float32Array => logits.subarray((part.first + k) * vocab, (part.first + k + 1) * vocab);
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
      if (!this.next(s, of(base + k), from)) return;
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

  /** Picks a token; false when the sequence has ended. */
  private next(s: Sequence, logits: Float32Array, draft: { token: number; weights: Weights } | null): boolean {
    const { request } = s;
    if (request.maxTokens === 0) return this.end(s, 'length');
    const { picker } = request;
    const pick = draft && picker.verify ? picker.verify(logits, draft.token, draft.weights) : picker.pick(logits);
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
    if (s.pages) this.pages.release(s.pages);
    if (s.memory) this.memories!.leave(s.memory);
    if (s.slot >= 0) this.slots.push(s.slot);
    this.options.draftModel?.forget(s);
    s.pages = null;
    s.memory = null;
    s.slot = -1;
    for (const list of [this.running, this.waiting]) {
      const at = list.indexOf(s);
      if (at >= 0) list.splice(at, 1);
    }
  }
}
