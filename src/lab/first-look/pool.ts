/** Processes of one thread each: for small models two of them train faster than one with two threads. */
import { type ChildProcess, fork } from 'node:child_process';
import { createRequire } from 'node:module';
import { fileURLToPath, pathToFileURL } from 'node:url';
import type { Task, TaskResult } from './task.ts';
import type { FromWorker } from './worker.ts';

export interface Outcome<R extends TaskResult> {
  readonly result?: R;
  /** Why there is none. */
  readonly failed?: string;
}

export interface PoolListener<K, R extends TaskResult> {
  onSteps?(key: K, done: number): void;
  onDone(key: K, outcome: Outcome<R>): void;
}

const script = fileURLToPath(new URL('./worker.ts', import.meta.url));

function start(): ChildProcess {
  const tsx = pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href;
  return fork(script, {
    execArgv: ['--import', tsx],
    env: { ...process.env, ANSATZ_THREADS: '1' },
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
    serialization: 'advanced',
  });
}

/** Does all tasks, in order, on `workers` processes; a task whose process dies has failed, and the rest goes on. */
export async function doAll<K, R extends TaskResult>(
  tasks: readonly { readonly key: K; readonly task: Task }[],
  workers: number,
  listener: PoolListener<K, R>,
  signal?: AbortSignal,
): Promise<void> {
  let next = 0;
  const one = async (): Promise<void> => {
    while (next < tasks.length && !signal?.aborted) {
      const child = start();
      const stop = (): void => void child.kill();
      signal?.addEventListener('abort', stop);
      try {
        while (next < tasks.length && !signal?.aborted) {
          const { key, task } = tasks[next++];
          const outcome = await send<R>(child, task, (done) => listener.onSteps?.(key, done));
          if (signal?.aborted) return;
          listener.onDone(key, outcome);
          if (!child.connected) break;
        }
      } finally {
        signal?.removeEventListener('abort', stop);
        if (child.connected) child.disconnect();
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(workers, tasks.length) }, one));
}

/** The outcome of a task; the process may still be starting. */
function send<R extends TaskResult>(
  child: ChildProcess,
  task: Task,
  onSteps: (done: number) => void,
): Promise<Outcome<R>> {
  return new Promise((done) => {
    let said = '';
    const onError = (chunk: Buffer): void => {
      said = (said + chunk.toString()).slice(-2000);
    };
    const finish = (outcome: Outcome<R>): void => {
      child.off('message', onMessage).off('exit', onExit);
      child.stderr?.off('data', onError);
      done(outcome);
    };
    const onMessage = (message: FromWorker): void => {
      if (message.kind === 'steps') onSteps(message.done);
      if (message.kind === 'result') finish({ result: message.result as R });
      if (message.kind === 'failed') finish({ failed: message.message });
    };
    const onExit = (code: number | null, name: string | null): void => {
      const last = said.trim().split('\n').at(-1) ?? '';
      finish({ failed: `its process ended with ${name ?? code}${last ? `: ${last}` : ''}` });
    };
    child.on('message', onMessage).on('exit', onExit);
    child.stderr?.on('data', onError);
    child.send({ task });
  });
}
