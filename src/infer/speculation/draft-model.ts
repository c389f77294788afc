/** A small model that guesses for a large one. It keeps its own pages, and takes back what turned out wrong. */
import type { Draft, Drafting, DraftRequest } from '../engine/index.ts';
import type { Passes, Row } from '../engine/passes.ts';
import { draw, randomStream, weigh } from '../sampling/index.ts';

interface Follower {
  readonly slot: number;
  readonly uniform: () => number;
  /** Tokens whose state lies in the pages. */
  readonly tokens: number[];
}

export interface DraftModelOptions {
  readonly passes: Passes;
  readonly vocab: number;
  readonly context: number;
  readonly page: number;
  /** Sequences at a time; the pool must hold as many full ones. */
  readonly sequences: number;
  /** Rows of a pass at most. */
  readonly rows?: number;
}

export class DraftModel implements Drafting {
  private readonly options: DraftModelOptions;
  private readonly followers = new Map<object, Follower>();
  private readonly slots: number[];

  constructor(options: DraftModelOptions) {
    this.options = options;
    const { sequences, context, page, passes } = options;
    const each = Math.ceil(context / page);
    this.slots = Array.from({ length: sequences }, (_, k) => sequences - 1 - k);
    // Every sequence has its place for good: there is nothing to run out of.
    for (let s = 0; s < sequences; s++)
      passes.place(
        s,
        Array.from({ length: each }, (_, k) => s * each + k),
      );
  }

  async draft(requests: readonly DraftRequest[], most: number): Promise<Draft[]> {
    const drafts = requests.map((): { tokens: number[]; weights: NonNullable<Draft['weights']>[number][] } => ({
      tokens: [],
      weights: [],
    }));
    const followers = requests.map((r) => this.follower(r));
    // What it has not seen yet goes first, in as many passes as that takes; then a token a pass.
    const next = followers.map((f, k) => f && requests[k].tokens.slice(f.tokens.length));
    for (;;) {
      const rows: Row[] = [];
      const ends: { request: number; row: number }[] = [];
      next.forEach((pending, k) => {
        const f = followers[k];
        const room = (this.options.rows ?? 256) - rows.length;
        if (!f || !pending || pending.length === 0 || room <= 0) return;
        const part = pending.splice(0, room);
        for (const token of part) {
          rows.push({ token, sequence: f.slot, position: f.tokens.length });
          f.tokens.push(token);
        }
        if (pending.length === 0) ends.push({ request: k, row: rows.length - 1 });
      });
      if (rows.length === 0) break;
      const logits = await this.options.passes.run(
        rows,
        ends.map((e) => e.row),
      );
      const { vocab } = this.options;
      ends.forEach(({ request: k }, n) => {
        const { sampling, most: own = most } = requests[k];
        const weights = weigh(logits.subarray(n * vocab, (n + 1) * vocab), sampling);
        if (!weights || drafts[k].tokens.length >= Math.min(own, most)) return;
        const token = draw(weights, followers[k]!.uniform());
        drafts[k].tokens.push(token);
        drafts[k].weights.push(weights);
        if (drafts[k].tokens.length < Math.min(own, most)) next[k]!.push(token);
      });
    }
    return drafts;
  }

  forget(key: object): void {
    const f = this.followers.get(key);
    if (!f) return;
    this.slots.push(f.slot);
    this.followers.delete(key);
  }

  /** The state of a sequence, cut back to what it shares with the text as it is now; null when there is no place. */
  private follower({ key, tokens, sampling, most = 0 }: DraftRequest): Follower | null {
    if (tokens.length + most > this.options.context) return null;
    let f = this.followers.get(key);
    if (!f) {
      const slot = this.slots.pop();
      if (slot === undefined) return null;
      f = { slot, uniform: randomStream((sampling.seed ?? 0) ^ 0x5bd1e995), tokens: [] };
      this.followers.set(key, f);
    }
    let same = 0;
    while (same < f.tokens.length && same < tokens.length - 1 && f.tokens[same] === tokens[same]) same++;
    f.tokens.length = same;
    return f;
  }
}
