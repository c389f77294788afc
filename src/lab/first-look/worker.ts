/** The other end of pool.ts: a process that does one task after another, on one thread. */
import { runTask, speedTask, type Task } from './task.ts';

export type ToWorker = { readonly task: Task };
export type FromWorker =
  | { readonly kind: 'steps'; readonly done: number }
  | { readonly kind: 'result'; readonly result: unknown }
  | { readonly kind: 'failed'; readonly message: string };

const say = (message: FromWorker): void => void process.send?.(message);

process.on('message', ({ task }: ToWorker) => {
  const work = task.kind === 'run' ? runTask(task, (done) => say({ kind: 'steps', done })) : speedTask(task);
  work.then(
    (result) => say({ kind: 'result', result }),
    (error: Error) => say({ kind: 'failed', message: error.message }),
  );
});
// Whoever started this process is gone, or wants no more.
process.on('disconnect', () => process.exit(0));
// Ctrl-C reaches every process of the terminal; the first one decides.
process.on('SIGINT', () => {});
