/** The server: models, files and jobs behind one port, from start to a clean end. */
import { setMaxListeners } from 'node:events';
import { mkdirSync } from 'node:fs';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join, resolve } from 'node:path';
import { createAdaptorServer } from '@hono/node-server';
import { AnsatzError } from '../backend/errors.ts';
import { adapts } from '../infer/adapters.ts';
import { type OpenRun, openRun } from '../infer/load.ts';
import { disposeTree } from '../nn/index.ts';
import { RunFolder } from '../train/run/folder.ts';
import { createApp } from './app.ts';
import { type KeyRecord, Keys } from './auth/keys.ts';
import { Limits } from './auth/limits.ts';
import { FileStore } from './files/store.ts';
import { isLoopback } from './http/guard.ts';
import { Observer, type RequestRecord } from './http/observe.ts';
import { open } from './models/opening.ts';
import { Registry } from './models/registry.ts';
import type { ServedModel, ServingOptions } from './models/served.ts';
import { TuningJobs } from './tuning/jobs.ts';

export interface NamedRun {
  readonly name: string;
  readonly path: string;
}

export interface ServerOptions extends ServingOptions {
  readonly runs: readonly NamedRun[];
  /** A run that guesses for all others. */
  readonly draft?: string;
  /** Reads all weights for their checksums, also where they were found right before. */
  readonly verify?: boolean;
  readonly host: string;
  /** 0: any that is free. */
  readonly port: number;
  /** Where files, jobs and adapted models lie. */
  readonly data: string;
  readonly keys: readonly KeyRecord[];
  /** Rates of keys that have none of their own. */
  readonly requestsPerMinute?: number;
  readonly tokensPerMinute?: number;
  readonly maxBody: number;
  /** Seconds that a client may take nothing of its answer before it is let go; 0, or absent: any number. */
  readonly stallTimeout?: number;
  readonly cors: readonly string[];
  readonly log?: (record: RequestRecord) => void;
  readonly warn?: (message: string) => void;
  readonly unforeseen?: (error: unknown) => void;
}

export interface RunningServer {
  readonly url: string;
  readonly models: readonly string[];
  /** Lets requests end for at most `grace` milliseconds, then ends them; frees everything. */
  close(grace?: number): Promise<void>;
}

const LEAST_GRACE_MS = 250;

/** @throws AnsatzError when a public address would be open to everybody, a run cannot be used, or the port is taken. */
export async function startServer(o: ServerOptions): Promise<RunningServer> {
  const { host, keys, unforeseen = () => {} } = o;
  if (keys.length === 0 && !isLoopback(host))
    throw new AnsatzError(`refusing to serve on ${host} without a key: anybody could use it`, {
      hint: 'add --key KEY or --keys FILE, or leave --host out',
    });
  refuseTwins(o.runs);
  const registry = new Registry(o);
  let draft: OpenRun | undefined;
  const closing = new AbortController();
  // Every request listens.
  setMaxListeners(0, closing.signal);
  let jobs: TuningJobs | undefined;
  let server: Server | undefined;
  /** Everything in the order in which it depends on each other. */
  const free = async (): Promise<void> => {
    await jobs?.close();
    await registry.close();
    if (draft) disposeTree(draft.params);
  };
  try {
    if (o.draft !== undefined) draft = await openRun(o.draft, { verify: o.verify, warn: o.warn });
    // Adapters come after the models that they may stand beside.
    const own: ServedModel[] = [];
    for (const { name, path } of [...o.runs].sort((a, b) => +isAdapter(a.path) - +isAdapter(b.path))) {
      const created = Math.floor(Date.parse(RunFolder.open(path).created) / 1000) || 0;
      const info = { name, created, owner: 'ansatz', tuned: false };
      own.push(await open(info, path, own, o, { verify: o.verify, warn: o.warn, draft }));
      registry.add(own[own.length - 1]);
    }
    const data = resolve(o.data);
    mkdirSync(data, { recursive: true });
    const files = new FileStore(join(data, 'files'));
    jobs = new TuningJobs(join(data, 'jobs'), files, registry, unforeseen);
    const app = createApp({
      ...{ registry, files, jobs, unforeseen, closing: closing.signal },
      ...{ maxBody: o.maxBody, stallMs: 1000 * (o.stallTimeout ?? 0), cors: o.cors },
      ...{ local: isLoopback(host) && keys.length === 0 },
      keys: new Keys(keys),
      limits: new Limits(o),
      observer: new Observer(registry, o.log ?? (() => {})),
    });
    server = createAdaptorServer({ fetch: app.fetch, hostname: 'localhost' }) as Server;
    // Clients keep connections for the next request; one that is slow to ask is not waited for.
    server.keepAliveTimeout = 75_000;
    server.headersTimeout = 60_000;
    server.requestTimeout = 300_000;
    const port = await listen(server, host, o.port);
    jobs.start();
    return {
      url: `http://${host.includes(':') && !host.startsWith('[') ? `[${host}]` : host}:${port}`,
      models: registry.list().map((m) => m.name),
      close: async (grace = 0) => {
        const ended = new Promise<void>((done) => server!.close(() => done()));
        // Connections whose last request ends from now on are kept open by nobody.
        const idle = setInterval(() => server!.closeIdleConnections(), 20);
        const timer = setTimeout(() => closing.abort(), grace);
        // What was cut off gets a moment to say so.
        const last = setTimeout(() => server!.closeAllConnections(), grace + LEAST_GRACE_MS);
        await ended;
        for (const t of [timer, last, idle]) clearTimeout(t);
        closing.abort();
        await free();
      },
    };
  } catch (error) {
    server?.close();
    await free();
    throw error;
  }
}

const isAdapter = (path: string): boolean => adapts(path) !== null;

function refuseTwins(runs: readonly NamedRun[]): void {
  const names = runs.map((r) => r.name);
  const twin = names.find((name, k) => names.indexOf(name) !== k);
  if (twin !== undefined)
    throw new AnsatzError(`two runs are called ${twin}`, {
      hint: `name one of them: other=${runs.find((r) => r.name === twin)!.path}`,
    });
}

function listen(server: Server, host: string, port: number): Promise<number> {
  return new Promise((done, fail) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      const why =
        cause.code === 'EADDRINUSE'
          ? 'the port is in use'
          : cause.code === 'EACCES'
            ? 'permission denied'
            : cause.code === 'EADDRNOTAVAIL' || cause.code === 'ENOTFOUND'
              ? 'this machine has no such address'
              : cause.message;
      fail(
        new AnsatzError(`cannot serve on ${host}:${port}: ${why}`, { hint: 'choose another --port or --host', cause }),
      );
    });
    server.listen(port, host.replace(/^\[|\]$/g, ''), () => done((server.address() as AddressInfo).port));
  });
}
