/** One line and a few counts for every request; and what the models say of themselves when /metrics is read. */
import type { MiddlewareHandler } from 'hono';
import { routePath } from 'hono/route';
import type { Registry } from '../models/registry.ts';
import type { ServedModel } from '../models/served.ts';
import type { Env } from './exchange.ts';
import { newId } from './ids.ts';
import { Meter } from './meter.ts';
import { Metrics } from './metrics.ts';

/** What is logged of a request. */
export interface RequestRecord {
  readonly id: string;
  readonly method: string;
  readonly path: string;
  /** 499: the client went away before the answer was complete. */
  readonly status: number;
  readonly ms: number;
  readonly key?: string;
  readonly model?: string;
  readonly stream?: boolean;
  readonly promptTokens?: number;
  readonly cachedTokens?: number;
  readonly completionTokens?: number;
  /** Milliseconds to the first token. */
  readonly firstToken?: number;
}

const LATENCIES = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];
const PER_TOKEN = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1];

export class Observer {
  readonly metrics = new Metrics();
  private readonly requests = this.metrics.counter('ansatz_requests_total', 'Requests answered, by route and status.');
  private readonly tokens = this.metrics.counter('ansatz_tokens_total', 'Tokens read, taken from the cache, and made.');
  private readonly time = this.metrics.histogram(
    'ansatz_request_seconds',
    'Time from request to the end of the answer.',
    LATENCIES,
  );
  private readonly first = this.metrics.histogram(
    'ansatz_time_to_first_token_seconds',
    'Time from request to the first token of a choice.',
    LATENCIES,
  );
  private readonly each = this.metrics.histogram(
    'ansatz_time_per_output_token_seconds',
    'Time between the tokens of a choice, on average.',
    PER_TOKEN,
  );
  private active = 0;
  private models: readonly ServedModel[] = [];
  private readonly registry: Registry;
  private readonly log: (record: RequestRecord) => void;

  constructor(registry: Registry, log: (record: RequestRecord) => void) {
    [this.registry, this.log] = [registry, log];
    this.metrics.read('ansatz_requests_active', 'Requests being answered.', () => [[{}, this.active]]);
    this.metrics.read('ansatz_resident_bytes', 'Memory of the process.', () => [[{}, process.memoryUsage.rss()]]);
    this.metrics.read('ansatz_uptime_seconds', 'Since the process began.', () => [[{}, process.uptime()]]);
    type Stats = ReturnType<ServedModel['decoding']['stats']>;
    const ofModels = (
      name: string,
      help: string,
      value: (s: Stats) => number,
      type: 'gauge' | 'counter' = 'gauge',
    ): void =>
      this.metrics.read(
        `ansatz_${name}`,
        help,
        () => {
          // An adapter has the decoder of the model that it stands beside.
          const own = this.models.filter((m) => m.base === null);
          return own.map((m) => [{ model: m.info.name }, value(m.decoding.stats())]);
        },
        type,
      );
    this.metrics.read('ansatz_weight_bytes', "Bytes of weights that are a model's own.", () =>
      this.models.map((m) => [{ model: m.info.name, ...(m.base !== null && { base: m.base }) }, m.weightBytes]),
    );
    ofModels('sequences_running', 'Sequences that have a place.', (s) => s.running);
    ofModels('sequences_waiting', 'Sequences that wait for one.', (s) => s.waiting);
    ofModels('sequences_paused', 'Sequences whose clients read slowly.', (s) => s.paused);
    ofModels('steps_total', 'Steps of the decoder.', (s) => s.steps, 'counter');
    ofModels('rows_total', 'Rows of those steps.', (s) => s.rows, 'counter');
    ofModels('preemptions_total', 'Sequences that had to start over.', (s) => s.preemptions, 'counter');
    ofModels('drafted_tokens_total', 'Tokens guessed.', (s) => s.drafted, 'counter');
    ofModels('accepted_tokens_total', 'Guesses that were right.', (s) => s.accepted, 'counter');
    ofModels('cache_pages', 'Pages of the cache.', (s) => s.pages.total);
    ofModels('cache_pages_used', 'Pages that sequences use.', (s) => s.pages.used);
    ofModels('cache_pages_kept', 'Pages kept for later prompts.', (s) => s.pages.cached);
    ofModels('cache_asked_tokens_total', 'Prompt tokens looked up.', (s) => s.pages.askedTokens, 'counter');
    ofModels('cache_hit_tokens_total', 'Prompt tokens found.', (s) => s.pages.hitTokens, 'counter');
  }

  async text(): Promise<string> {
    this.models = await this.registry.open();
    return this.metrics.text();
  }

  /** Names the request, and notes how it went once its connection is done with it. */
  middleware(closing: AbortSignal, unforeseen: (error: unknown) => void): MiddlewareHandler<Env> {
    return async (c, next) => {
      const meter = new Meter();
      const id = newId('req_');
      const control = new AbortController();
      const { outgoing } = c.env;
      c.set('id', id);
      c.set('key', null);
      c.set('rates', { requests: null, tokens: null });
      c.set('meter', meter);
      c.set('gone', control.signal);
      c.set('unforeseen', unforeseen);
      c.header('x-request-id', id);
      const close = (): void => control.abort();
      closing.addEventListener('abort', close);
      this.active++;
      outgoing.once('close', () => {
        closing.removeEventListener('abort', close);
        if (!outgoing.writableFinished) control.abort();
        this.active--;
        const status = outgoing.writableFinished ? outgoing.statusCode : 499;
        this.note(id, c.req.method, c.req.path, routePath(c), status, meter, c.get('key')?.name);
      });
      await next();
      c.header('openai-processing-ms', String(Math.round(performance.now() - meter.started)));
    };
  }

  private note(
    id: string,
    method: string,
    path: string,
    route: string,
    status: number,
    meter: Meter,
    key: string | undefined,
  ): void {
    const ms = performance.now() - meter.started;
    const model = meter.model ?? '';
    this.requests.add({ route, method, status: String(status) });
    this.time.note({ route }, ms / 1000);
    for (const { started, first, last, tokens } of meter.choices) {
      if (first === null) continue;
      this.first.note({ model }, (first - started) / 1000);
      if (tokens > 1) this.each.note({ model }, (last - first) / (tokens - 1) / 1000);
    }
    for (const [kind, n] of [
      ['prompt', meter.promptTokens],
      ['cached', meter.cachedTokens],
      ['completion', meter.completionTokens],
    ] as const)
      if (n > 0) this.tokens.add({ model, kind }, n);
    const { firstToken, promptTokens, cachedTokens, completionTokens, stream } = meter;
    const round = (x: number): number => Math.round(x * 100) / 100;
    this.log({
      ...{ id, method, path, status, ms: round(ms) },
      ...(key && { key }),
      ...(meter.model && { model, stream, promptTokens, cachedTokens, completionTokens }),
      ...(firstToken !== null && { firstToken: round(firstToken) }),
    });
  }
}
