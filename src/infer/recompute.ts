/** Serves requests one after another by computing the whole text anew for every token: for specs without another way. */
import { AnsatzError } from '../backend/errors.ts';
import type { Decoding, EngineStats, Finished, FinishReason, Request } from './engine/index.ts';
import type { Window } from './window.ts';

export class Recompute implements Decoding {
  private readonly window: Window;
  private readonly context: number;
  private queue: Promise<unknown> = Promise.resolve();
  private closed = false;
  private counts = { steps: 0, tokens: 0, waiting: 0 };

  constructor(window: Window, context: number) {
    [this.window, this.context] = [window, context];
  }

  submit(request: Request): Promise<Finished> {
    if (this.closed) throw new AnsatzError('the engine is closed');
    if (request.prompt.length === 0) throw new AnsatzError('a prompt needs at least one token');
    if (request.prompt.length >= this.context)
      throw new AnsatzError(
        `a prompt of ${request.prompt.length} tokens leaves no room in a context of ${this.context}`,
        { hint: 'shorten the prompt' },
      );
    this.counts.waiting++;
    const served = this.queue.then(() => {
      this.counts.waiting--;
      return this.serve(request);
    });
    this.queue = served.catch(() => {});
    return served;
  }

  stats(): EngineStats {
    const { steps, tokens, waiting } = this.counts;
    const pages = { total: 0, free: 0, used: 0, cached: 0, hitTokens: 0, askedTokens: 0 };
    return { steps, rows: steps, tokens, running: 0, waiting, preemptions: 0, drafted: 0, accepted: 0, pages };
  }

  async close(): Promise<void> {
    this.closed = true;
    await this.queue;
  }

  private async serve(request: Request): Promise<Finished> {
    const { prompt, maxTokens, picker, stop = [], signal, onToken, ahead = 0, scorePrompt } = request;
    const tokens = [...prompt];
    const finish = (reason: FinishReason): Finished => ({
      reason,
      promptTokens: prompt.length,
      cachedTokens: 0,
      tokens: tokens.length - prompt.length,
      drafted: 0,
      accepted: 0,
    });
    const next = (ids: readonly number[]): Promise<Float32Array> => {
      this.counts.steps++;
      return this.window.next(ids, ahead - 1);
    };
    await this.window.read(request.encoder ?? []);
    for (let k = 1; scorePrompt && k < prompt.length; k++) scorePrompt(prompt[k], k, await next(prompt.slice(0, k)));
    for (;;) {
      if (this.closed || signal?.aborted) return finish('cancelled');
      if (tokens.length - prompt.length >= maxTokens || tokens.length >= this.context) return finish('length');
      const pick = picker.pick(await next(tokens));
      if (!pick || stop.includes(pick.token)) return finish('stop');
      tokens.push(pick.token);
      this.counts.tokens++;
      if (onToken(pick) === false) return finish('stop');
    }
  }
}
