/** The routes of the server. */
import { Hono } from 'hono';
import { cors } from 'hono/cors';
import { chatCompletions } from './api/chat.ts';
import { completions } from './api/completions.ts';
import { embeddings } from './api/embeddings.ts';
import { modelRoutes } from './api/models.ts';
import type { Keys } from './auth/keys.ts';
import type { Limits } from './auth/limits.ts';
import { fileRoutes } from './files/routes.ts';
import type { FileStore } from './files/store.ts';
import { connections } from './http/connection.ts';
import { ApiError, asApiError } from './http/errors.ts';
import type { Env } from './http/exchange.ts';
import { keyGuard, originGuard, scopeGuard } from './http/guard.ts';
import type { Observer } from './http/observe.ts';
import { page, pageFolder } from './http/static.ts';
import { inspectionRoutes } from './inspect.ts';
import type { Registry } from './models/registry.ts';
import type { TuningJobs } from './tuning/jobs.ts';
import { tuningRoutes } from './tuning/routes.ts';

export interface AppOptions {
  readonly registry: Registry;
  readonly files: FileStore;
  readonly jobs: TuningJobs;
  readonly keys: Keys;
  readonly limits: Limits;
  readonly observer: Observer;
  /** Bytes of a request at most. */
  readonly maxBody: number;
  /** Milliseconds that a client may take nothing of its answer; 0: any number. */
  readonly stallMs: number;
  /** Origins whose pages may use the server; '*' stands for all. */
  readonly cors: readonly string[];
  /** Whether it is bound to this machine alone, and without keys. */
  readonly local: boolean;
  /** Aborts when requests must end. */
  readonly closing: AbortSignal;
  readonly unforeseen: (error: unknown) => void;
}

export function createApp(o: AppOptions): Hono<Env> {
  const { registry, observer, unforeseen } = o;
  const app = new Hono<Env>();
  app.use(observer.middleware(o.closing, unforeseen));
  app.use(connections(o.stallMs));
  app.use(originGuard(o.cors, o.local));
  if (o.cors.length > 0)
    app.use(
      cors({
        origin: o.cors.includes('*') ? '*' : [...o.cors],
        allowMethods: ['GET', 'POST', 'DELETE', 'OPTIONS'],
        exposeHeaders: [
          'x-request-id',
          'retry-after',
          'retry-after-ms',
          ...['limit', 'remaining', 'reset'].flatMap((k) => ['requests', 'tokens'].map((w) => `x-ratelimit-${k}-${w}`)),
        ],
        maxAge: 600,
      }),
    );
  app.get('/healthz', (c) => c.json({ status: o.closing.aborted ? 'closing' : 'ok' }));
  app.get('/health', (c) => c.json({ status: 'ok' }));
  const guarded = keyGuard(o.keys, o.limits);
  app.get('/metrics', guarded, scopeGuard('metrics'), async (c) =>
    c.text(await observer.text(), 200, { 'content-type': 'text/plain; version=0.0.4; charset=utf-8' }),
  );

  const v1 = new Hono<Env>();
  v1.use(guarded);
  v1.use(async (c, next) => {
    c.header('openai-version', '2020-10-01');
    await next();
  });
  v1.route('/models', modelRoutes(registry, o.jobs));
  v1.post('/chat/completions', scopeGuard('inference'), (c) => chatCompletions(c, registry, o));
  v1.post('/completions', scopeGuard('inference'), (c) => completions(c, registry, o));
  v1.post('/embeddings', scopeGuard('inference'), (c) => embeddings(c, registry, o));
  v1.route('/files', fileRoutes(o.files, o));
  v1.route('/fine_tuning/jobs', tuningRoutes(o.jobs, o));
  app.route('/v1', v1);

  // What the page at / asks besides.
  const ansatz = new Hono<Env>();
  ansatz.use(guarded);
  ansatz.route('/', inspectionRoutes(registry, o));
  app.route('/ansatz', ansatz);

  const folder = pageFolder();
  app.get('*', (c, next) => {
    const found = /^\/(v1|ansatz)\//.test(c.req.path) ? null : page(folder, c.req.path);
    return found ? Promise.resolve(found) : next();
  });
  app.notFound((c) => {
    const error = new ApiError(404, `Unknown request URL: ${c.req.method} ${c.req.path}.`, { code: 'unknown_url' });
    return c.json(error.body, 404);
  });
  app.onError((error, c) => {
    const { status, body, headers } = asApiError(error, unforeseen);
    for (const [name, value] of Object.entries(headers)) c.header(name, value);
    return c.json(body, status as 400);
  });
  return app;
}
