/** The processes of the benchmark: our server, the peer's, and the one that asks. */
import { type ChildProcess, fork, spawn } from 'node:child_process';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { Job, Load } from './load.ts';

const here = fileURLToPath(new URL('.', import.meta.url));
const bin = resolve(here, '../../bin/ansatz.mjs');

export interface Served {
  readonly url: string;
  stop(): Promise<void>;
}

const running = new Set<ChildProcess>();
/** A benchmark that is ended ends its servers too. */
function watched(child: ChildProcess): void {
  if (running.size === 0)
    for (const signal of ['SIGINT', 'SIGTERM'] as const)
      process.once(signal, () => {
        for (const c of running) c.kill('SIGKILL');
        process.exit(1);
      });
  running.add(child);
  child.once('exit', () => running.delete(child));
}

/** Ends a process and waits until it has. */
async function ended(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const over = new Promise((done) => child.once('exit', done));
  child.kill(signal);
  await over;
}

/** Starts a process that says in a JSON line with a `url` that it is ready. */
async function started(args: readonly string[]): Promise<Served> {
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  watched(child);
  let errors = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    errors = (errors + text).slice(-4000);
  });
  const lines = createInterface({ input: child.stdout });
  const url = await new Promise<string>((done, fail) => {
    lines.on('line', (line) => {
      if (!line.startsWith('{')) return;
      const said = JSON.parse(line) as { event?: string; url?: string };
      if (said.event === 'result' && said.url) done(said.url);
    });
    child.once('exit', (code) => fail(new Error(`${args.join(' ')} ended with ${code}: ${errors}`)));
  });
  return { url, stop: () => ended(child, 'SIGTERM') };
}

export const startOurs = (runs: readonly string[], data: string, options: readonly string[]): Promise<Served> =>
  started([bin, 'serve', ...runs, '--port', '0', '--json', '--data', data, ...options]);

export const startPeer = (gguf: string, sequences: number, context: number): Promise<Served> =>
  started(['--import', 'tsx', join(here, 'llama-server.ts'), gguf, String(sequences), String(context)]);

/** A process that asks, from job to job. */
export class Loader {
  private readonly child: ChildProcess;

  constructor() {
    this.child = fork(join(here, 'load.ts'), { execArgv: ['--import', 'tsx'] });
    watched(this.child);
  }

  run(job: Job): Promise<Load> {
    const { child } = this;
    return new Promise((done, fail) => {
      const exit = (code: number | null): void => fail(new Error(`the process that asks ended with ${code}`));
      child.once('exit', exit);
      child.once('message', (load: Load) => {
        child.off('exit', exit);
        done(load);
      });
      child.send(job);
    });
  }

  stop(): Promise<void> {
    return ended(this.child, 'SIGTERM');
  }
}

/** Numbers of /metrics, summed over labels. */
export async function metricsOf(url: string): Promise<Map<string, number>> {
  const text = await (await fetch(`${url}/metrics`)).text();
  const sums = new Map<string, number>();
  for (const line of text.split('\n')) {
    const found = /^ansatz_(\w+)(?:\{.*\})? (\S+)$/.exec(line);
    if (found) sums.set(found[1], (sums.get(found[1]) ?? 0) + Number(found[2]));
  }
  return sums;
}
