// Servers over tiny runs, in this process, and clients for them.
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { after } from 'node:test';
import OpenAI from 'openai';
import type { RequestRecord } from '../../src/serve/http/observe.ts';
import { type RunningServer, type ServerOptions, startServer } from '../../src/serve/server.ts';
import { bin } from './cli.ts';
import {
  checkout,
  createRun,
  type TinyData,
  temporaryFolder,
  tinyConfig,
  tinyData,
  trainRun,
  writeGrammar,
} from './tiny-data.ts';

type Overrides = Parameters<typeof tinyConfig>[1];

/** Trained runs over one small text. */
export class TinyRuns {
  readonly root: string;
  private data: Promise<TinyData> | null = null;

  constructor(name: string) {
    this.root = temporaryFolder(name);
  }

  text(): Promise<TinyData> {
    this.data ??= tinyData(join(this.root, 'data'), writeGrammar(join(this.root, 'text'), 600));
    return this.data;
  }

  /** The path of a new run. */
  async train(name: string, overrides: Overrides = {}): Promise<string> {
    const { model, ...rest } = overrides ?? {};
    const path = join(this.root, name);
    const config = tinyConfig(await this.text(), { steps: 30, ...rest, model: { context: 128, ...model } });
    await trainRun(await createRun(path, config));
    return path;
  }

  folder(name: string): string {
    const path = join(this.root, name);
    mkdirSync(path, { recursive: true });
    return path;
  }
}

export interface Serving {
  readonly server: RunningServer;
  readonly client: OpenAI;
  readonly url: string;
  /** What was logged, oldest first. */
  readonly requests: RequestRecord[];
  /** Errors that nobody thought of: none, in a sound server. */
  readonly unforeseen: unknown[];
}

const all: RunningServer[] = [];
const children: ChildProcess[] = [];
after(async () => {
  for (const child of children) child.kill('SIGKILL');
  for (const server of all) await server.close();
});

/** A server that is closed when this test file is done. */
export async function serving(
  runs: Readonly<Record<string, string>>,
  options: Partial<ServerOptions> & Pick<ServerOptions, 'data'>,
  apiKey = 'none',
): Promise<Serving> {
  const requests: RequestRecord[] = [];
  const unforeseen: unknown[] = [];
  const server = await startServer({
    runs: Object.entries(runs).map(([name, path]) => ({ name, path })),
    ...{ host: '127.0.0.1', port: 0, keys: [], maxBody: 8 << 20, cors: [], lookup: false, sequences: 16, queue: 256 },
    log: (r) => requests.push(r),
    unforeseen: (e) => unforeseen.push(e),
    ...options,
  });
  let closed: Promise<void> | null = null;
  const once: RunningServer = {
    ...server,
    close: (grace) => {
      closed ??= server.close(grace);
      return closed;
    },
  };
  all.push(once);
  return { server: once, url: server.url, requests, unforeseen, client: clientOf(server.url, apiKey) };
}

export const clientOf = (url: string, apiKey = 'none', options: object = {}): OpenAI =>
  new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, ...options });

/** Waits until something is true; fails after `seconds`. */
export async function until(what: string, test: () => boolean | Promise<boolean>, seconds = 60): Promise<void> {
  for (const end = Date.now() + seconds * 1000; !(await test()); ) {
    if (Date.now() > end) throw new Error(`waited ${seconds} s in vain: ${what}`);
    await new Promise((done) => setTimeout(done, 20));
  }
}

/** The number of a line of /metrics. */
export async function metric(url: string, line: string, key?: string): Promise<number> {
  const headers: Record<string, string> = key ? { authorization: `Bearer ${key}` } : {};
  const text = await (await fetch(`${url}/metrics`, { headers })).text();
  const found = text.split('\n').find((l) => l.startsWith(`${line} `) || l.startsWith(`${line}{`));
  if (!found) throw new Error(`/metrics has no ${line}:\n${text}`);
  return Number(found.slice(found.lastIndexOf(' ')));
}

/** `ansatz serve` in a process of its own. */
export interface CliServer {
  readonly url: string;
  readonly client: OpenAI;
  /** What it printed: objects, one a line. */
  readonly lines: Record<string, unknown>[];
  stderr(): string;
  /** Sends a signal; settles with the exit code. */
  kill(signal: NodeJS.Signals): Promise<number | null>;
}

export async function cliServer(args: readonly string[], apiKey = 'none'): Promise<CliServer> {
  const child = spawn(process.execPath, [bin, 'serve', ...args, '--port', '0', '--json'], {
    cwd: checkout,
    env: { ...process.env, NODE_OPTIONS: undefined, NODE_TEST_CONTEXT: undefined },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  children.push(child);
  const lines: Record<string, unknown>[] = [];
  let [rest, errors] = ['', ''];
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    const parts = (rest + text).split('\n');
    rest = parts.pop()!;
    for (const line of parts) lines.push(JSON.parse(line));
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    errors += text;
  });
  const over = new Promise<number | null>((done) => child.on('close', done));
  const started = () => lines.find((l) => l.event === 'result');
  await until('the server starts', () => started() !== undefined || child.exitCode !== null);
  if (!started()) throw new Error(`the server ended: ${errors}`);
  const url = started()!.url as string;
  return {
    ...{ url, lines, client: clientOf(url, apiKey), stderr: () => errors },
    kill: (signal) => {
      child.kill(signal);
      return over;
    },
  };
}
