/** A text that goes on, or one with a hole: `after` is what follows the hole. */
import { complete } from '../lib/api.ts';
import { type Candidate, isControl, type Token } from '../lib/tokens.ts';
import { Generation } from './generation.svelte.ts';
import type { Session } from './session.svelte.ts';
import type { Settings } from './settings.svelte.ts';

export class Writing {
  before = $state('');
  after = $state('');
  readonly made = new Generation();
  /** The run that wrote what is shown. */
  model = $state('');
  private readonly hole: boolean;
  private readonly session: Session;
  private readonly settings: Settings;

  constructor(session: Session, settings: Settings, hole: boolean) {
    [this.session, this.settings, this.hole] = [session, settings, hole];
  }

  get empty(): boolean {
    return this.before === '' && (!this.hole || this.after === '');
  }

  /** Writes from the start. */
  async start(): Promise<void> {
    if (this.session.id && !(this.hole && this.empty)) await this.go([]);
  }

  /** Writes on after what is there. */
  async on(): Promise<void> {
    if (this.session.id) await this.go(this.made.tokens);
  }

  /** Goes on from the token at `k`, made another one. */
  async from(k: number, other: Candidate): Promise<void> {
    if (isControl(other)) this.made.cut(k);
    else await this.go(this.made.with(k, other));
  }

  /** Makes what was written part of the prompt. */
  adopt(): void {
    this.before += this.made.text;
    this.made.clear();
  }

  private async go(keep: readonly Token[]): Promise<void> {
    this.model = this.session.id;
    await this.made.run((signal) => {
      const prompt = this.before + this.made.text;
      const suffix = this.hole ? { suffix: this.after } : {};
      return complete({ model: this.model, prompt, ...suffix, ...this.settings.sampling }, signal);
    }, keep);
    this.session.saw(this.made.error);
  }
}
