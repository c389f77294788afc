/** Drafts of a step: whether asking for them pays now, and what a small model guesses for all who want it. */
import { Governor } from '../speculation/governor.ts';
import type { Drafting, Sequence } from './sequence.ts';

export interface DraftsOptions {
  readonly context: number;
  /** Tokens drafted at a time. */
  readonly drafts?: number;
  /** A small model that drafts for requests without a drafter of their own. */
  readonly draftModel?: Drafting;
}

export class Drafts {
  private readonly options: DraftsOptions;
  private readonly governor = new Governor();

  constructor(options: DraftsOptions) {
    this.options = options;
  }

  /** Asks for drafts of the sequences that are decoding, when drafting pays; whether it does. Null: nobody can draft. */
  async prepare(running: readonly Sequence[]): Promise<boolean | null> {
    const { drafts = 0, draftModel, context } = this.options;
    const decoding = running.filter((s) => s.tokens.length - s.computed === 1);
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

  /** What a step brought, with drafts or without. */
  note(drafting: boolean, tokens: number, ms: number): void {
    this.governor.note(drafting, tokens, ms);
  }
}
