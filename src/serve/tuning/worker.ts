/**
 * Trains one job in a process of its own, so that the server goes on serving. It reads the job's folder, says how it is
 * getting on, and saves and stops when it is asked to or when the server has gone; whoever starts it again continues.
 */
import { existsSync } from 'node:fs';
import { copyFile, mkdir, readFile } from 'node:fs/promises';
import { setPriority } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { COMPANIONS } from '../../infer/formats/chat-files.ts';
import { parseTrainConfig } from '../../train/config.ts';
import type { JsonObject } from '../../train/run/canonical.ts';
import type { RunEvent } from '../../train/run/events.ts';
import { replaceFile } from '../../train/run/files.ts';
import { RunFolder } from '../../train/run/folder.ts';
import { lockOwner } from '../../train/run/lock.ts';
import { train } from '../../train/trainer.ts';
import type { JobSpec } from './job.ts';
import { InvalidFile, type Prepared, prepareJob } from './prepare.ts';

export type WorkerMessage =
  | { readonly kind: 'prepared'; readonly prepared: Omit<Prepared, 'config'>; readonly steps: number }
  | { readonly kind: 'invalid'; readonly param: string; readonly message: string }
  | { readonly kind: 'event'; readonly event: RunEvent }
  | { readonly kind: 'failed'; readonly message: string }
  | { readonly kind: 'ended'; readonly completed: boolean };

/** How long a process of an earlier server may take to save and go. */
const PATIENCE_MS = 60_000;

const say = (message: WorkerMessage): Promise<void> =>
  new Promise((done) => {
    if (!process.send || !process.connected) return done();
    process.send(message, () => done());
  });

async function work(folder: string, stop: AbortSignal): Promise<void> {
  const spec = JSON.parse(await readFile(join(folder, 'spec.json'), 'utf8')) as JobSpec;
  const plan = join(folder, 'plan.json');
  let prepared: Prepared;
  if (existsSync(plan)) prepared = JSON.parse(await readFile(plan, 'utf8')) as Prepared;
  else {
    prepared = await prepareJob(folder, spec);
    await replaceFile(plan, JSON.stringify(prepared));
  }
  const { config, ...rest } = prepared;
  await say({ kind: 'prepared', prepared: rest, steps: config.steps });
  const path = join(folder, 'run');
  await mkdir(path, { recursive: true });
  for (const end = Date.now() + PATIENCE_MS; lockOwner(path) && Date.now() < end; ) await sleep(100);
  const run = await RunFolder.create(path, parseTrainConfig(config) as unknown as JsonObject, { resume: true });
  // How the model is talked to goes with it.
  for (const name of COMPANIONS)
    if (existsSync(join(spec.base, name))) await copyFile(join(spec.base, name), join(path, name));
  const { status } = await train(run, {
    resume: true,
    signal: stop,
    onEvent: (event) => void say({ kind: 'event', event }),
  });
  await say({ kind: 'ended', completed: status === 'completed' });
}

const stop = new AbortController();
process.on('SIGTERM', () => stop.abort());
process.on('SIGINT', () => {}); // a terminal sends it to everybody; the server says what is to be done
process.on('disconnect', () => stop.abort());
try {
  // Requests go before training.
  setPriority(10);
} catch {
  // Not everybody may.
}
try {
  await work(process.argv[2], stop.signal);
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  await say(
    error instanceof InvalidFile ? { kind: 'invalid', param: error.param, message } : { kind: 'failed', message },
  );
}
if (process.connected) process.disconnect();
process.exit(0);
