/** Serves requests one after another by computing the whole text anew for every token: for specs without another way. */
import { AnsatzError } from '../backend/errors.ts';
import type { Decoding, EngineStats, Finished, FinishReason, Request } from './engine/index.ts';
import type { Window } from './window.ts';

export class Recompute implements Decoding {
  private readonly window: Window;
  private readonly context: number;
  private queue: Promise<unknown> = Promise.resolve();
  private closed = false;
  private readonly ending = new AbortController();
  private counts = { steps: 0, tokens: 0, waiting: 0, paused: 0 };

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
    return this.turns(request, [...request.prompt]);
  }

  /** Turn after turn, between those of others while its reader is slow. */
  private async turns(request: Request, tokens: number[]): Promise<Finished> {
    for (;;) {
      this.counts.waiting++;
      const turn = this.queue.then(() => {
        this.counts.waiting--;
        return this.serve(request, tokens);
      });
      this.queue = turn.catch(() => {});
      const finished = await turn;
      if (finished) return finished;
      this.counts.paused++;
      await request.flow!.resumed(AbortSignal.any([this.ending.signal, ...(request.signal ? [request.signal] : [])]));
      this.counts.paused--;
    }
  }

  stats(): EngineStats {
    const { steps, tokens, waiting, paused } = this.counts;
    const pages = { total: 0, free: 0, used: 0, cached: 0, hitTokens: 0, askedTokens: 0 };
    return { steps, rows: steps, tokens, running: 0, waiting, paused, preemptions: 0, drafted: 0, accepted: 0, pages };
  }

  async close(): Promise<void> {
    this.closed = true;
    this.ending.abort();
    await this.queue;
  }

  /** Goes on with a text; null when its reader has to take what there is first. */
  private async serve(request: Request, tokens: number[]): Promise<Finished | null> {
    const { prompt, maxTokens, picker, stop = [], signal, onToken, ahead = 0, scorePrompt, flow } = request;
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
    const fresh = tokens.length === prompt.length;
    for (let k = 1; fresh && scorePrompt && k < prompt.length; k++)
      scorePrompt(prompt[k], k, await next(prompt.slice(0, k)));
    for (;;) {
      if (this.closed || signal?.aborted) return finish('cancelled');
      if (flow?.paused) return null;
      if (tokens.length - prompt.length >= maxTokens || tokens.length >= this.context) return finish('length');
      const pick = picker.pick(await next(tokens));
      if (!pick || stop.includes(pick.token)) return finish('stop');
      tokens.push(pick.token);
      this.counts.tokens++;
      if (onToken(pick) === false) return finish('stop');
    }
  }
}
