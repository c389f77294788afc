/** A conversation. Each answer keeps its tokens, so that it can go on from any of them. */
import { chat, type Message } from '../lib/api.ts';
import { type Candidate, isControl } from '../lib/tokens.ts';
import { Generation } from './generation.svelte.ts';
import type { Session } from './session.svelte.ts';
import type { Settings } from './settings.svelte.ts';

export interface Turn {
  readonly id: number;
  readonly question: string;
  readonly answer: Generation;
  /** The run that answers. */
  readonly model: string;
}

export class Chat {
  turns = $state.raw<readonly Turn[]>([]);
  draft = $state('');
  private readonly session: Session;
  private readonly settings: Settings;
  private next = 1;

  constructor(session: Session, settings: Settings) {
    [this.session, this.settings] = [session, settings];
  }

  get running(): boolean {
    return this.turns.some((t) => t.answer.running);
  }

  /** Messages up to and with the question of a turn. */
  messages(turn: Turn): Message[] {
    const system = this.settings.system.trim();
    const list: Message[] = system ? [{ role: 'system', content: system }] : [];
    for (const t of this.turns) {
      // Questions that no answer came to are no part of what was said.
      if (t.id !== turn.id && t.answer.error && t.answer.text === '') continue;
      list.push({ role: 'user', content: t.question });
      if (t.id === turn.id) break;
      list.push({ role: 'assistant', content: t.answer.text });
    }
    return list;
  }

  async send(): Promise<void> {
    const question = this.draft.trim();
    if (question === '' || this.running || !this.session.id) return;
    const turn = { id: this.next++, question, answer: new Generation(), model: this.session.id };
    this.turns = [...this.turns, turn];
    this.draft = '';
    await this.answer(turn);
  }

  /** Answers anew, by the run in use now. What came after is dropped: it belonged to the old answer. */
  async again(turn: Turn): Promise<void> {
    await this.answer(this.branch(turn));
  }

  /** Goes on from the token at `k`, made another one. */
  async from(turn: Turn, k: number, other: Candidate): Promise<void> {
    const keep = turn.answer.with(k, other);
    const fresh = this.branch(turn);
    if (isControl(other)) fresh.answer.cut(k);
    else await this.answer(fresh, keep);
  }

  stop(): void {
    for (const t of this.turns) t.answer.stop();
  }

  clear(): void {
    this.stop();
    this.turns = [];
  }

  private branch(turn: Turn): Turn {
    this.stop();
    const fresh = { ...turn, model: this.session.id };
    this.turns = [
      ...this.turns.slice(
        0,
        this.turns.findIndex((t) => t.id === turn.id),
      ),
      fresh,
    ];
    return fresh;
  }

  private async answer(turn: Turn, keep: Parameters<Generation['run']>[1] = []): Promise<void> {
    const messages = this.messages(turn);
    await turn.answer.run((signal) => {
      const begun = turn.answer.text;
      // A last message of the assistant is gone on with.
      const all: Message[] = begun ? [...messages, { role: 'assistant', content: begun }] : messages;
      return chat({ model: turn.model, messages: all, ...this.settings.sampling }, signal);
    }, keep);
    this.session.saw(turn.answer.error);
  }
}
