/** What `ansatz serve` does. */
import { basename, resolve } from 'node:path';
import { addKey, type KeyRecord, readKeys, recordOf } from '../../serve/auth/keys.ts';
import type { RequestRecord } from '../../serve/http/observe.ts';
import { type NamedRun, startServer } from '../../serve/server.ts';
import type { ServeFlags } from '../commands/serve.ts';
import { quoted, shortPath } from '../invocation.ts';
import { formatCount, printable } from '../term/format.ts';
import { type Output, UsageError } from '../term/output.ts';

/** How long requests may go on when the server is asked to stop. */
const GRACE_MS = 10_000;

export async function runServe(output: Output, runs: readonly string[], flags: ServeFlags): Promise<void> {
  if (flags.newKey !== undefined) return newKey(output, flags.newKey, flags.keys);
  if (runs.length === 0) throw new UsageError("missing required argument 'runs'", { hint: 'ansatz serve RUN' });
  const started = await startServer({
    runs: runs.map(named),
    draft: flags.draft,
    verify: flags.verify,
    host: flags.host,
    port: flags.port,
    data: flags.data,
    keys: keysOf(flags),
    requestsPerMinute: flags.requestsPerMinute,
    tokensPerMinute: flags.tokensPerMinute,
    maxBody: flags.maxBody,
    stallTimeout: flags.stallTimeout,
    cors: flags.cors ?? [],
    lookup: flags.lookup ?? false,
    sequences: flags.sequences,
    queue: flags.queue,
    cacheBytes: flags.cacheBytes,
    log: (record) => report(output, record),
    warn: (message) => output.warn(message),
    unforeseen: (error) =>
      output.warn(`unexpected: ${error instanceof Error ? (error.stack ?? error.message) : error}`),
  });
  const { url, models } = started;
  output.result('serve', { url, models, data: resolve(flags.data) }, [
    `serving ${models.join(', ')} at ${url}`,
    `  ${output.style.dim('API')}  ${url}/v1`,
    `  ${output.style.dim('data')} ${shortPath(flags.data)}`,
    output.style.dim('Ctrl-C stops'),
  ]);
  await untilAsked(output, (grace) => started.close(grace));
}

function newKey(output: Output, name: string, file: string | undefined): void {
  if (file === undefined)
    throw new UsageError('--new-key needs the file that keys are kept in', {
      hint: `ansatz serve --new-key ${quoted(name)} --keys keys.json`,
    });
  const key = addKey(file, name);
  output.result('serve', { name, key, keys: file }, [
    key,
    output.style.dim(`${file} holds its hash; it is shown this once`),
  ]);
}

function named(text: string): NamedRun {
  const at = text.indexOf('=');
  const [name, path] = at > 0 ? [text.slice(0, at), text.slice(at + 1)] : [basename(resolve(text)), text];
  if (path === '') throw new UsageError(`'${text}' names no folder`, { hint: 'ansatz serve NAME=FOLDER' });
  if (name.startsWith('ft:')) throw new UsageError(`'${name}': names that begin with ft: are those of adapted models`);
  return { name, path };
}

function keysOf({ key = [], keys }: ServeFlags): KeyRecord[] {
  const short = key.find((k) => k.length < 16 || /\s/.test(k));
  if (short !== undefined)
    throw new UsageError('a key must have at least 16 characters and no spaces', {
      hint: 'ansatz serve --new-key NAME --keys FILE makes one',
    });
  return [...key.map((k, n) => recordOf(`key-${n + 1}`, k)), ...(keys === undefined ? [] : readKeys(keys))];
}

function report(output: Output, r: RequestRecord): void {
  output.emit({ event: 'request', time: new Date().toISOString(), ...r });
  if (output.mode === 'json') return;
  const { red, dim } = output.style;
  const status = r.status >= 400 ? red(String(r.status)) : String(r.status);
  const tokens = r.completionTokens
    ? `, ${formatCount(r.promptTokens ?? 0)} + ${formatCount(r.completionTokens)} tokens${r.firstToken ? `, first after ${Math.round(r.firstToken)} ms` : ''}`
    : '';
  // What a client put into a path must not reach a terminal as it is.
  const path = printable(r.path.slice(0, 120), { oneLine: true, unicode: output.unicode });
  const time = dim(new Date().toTimeString().slice(0, 8));
  output.say(`${time} ${status} ${r.method} ${path} ${Math.round(r.ms)} ms${r.model ? ` ${r.model}` : ''}${tokens}`);
}

/** Waits for SIGINT or SIGTERM, then stops; a second one does not wait. */
async function untilAsked(output: Output, close: (grace: number) => Promise<void>): Promise<void> {
  await new Promise<void>((done, fail) => {
    let asked = 0;
    const stop = (): void => {
      // One key press can arrive twice: from the terminal, and from npx, which passes it on.
      if (asked > 0 && performance.now() - asked > 1000) process.exit(130);
      if (asked > 0) return;
      asked = performance.now();
      output.say('stopping: requests in progress may end');
      close(GRACE_MS).then(done, fail);
    };
    process.on('SIGINT', stop);
    process.on('SIGTERM', stop);
  });
}
