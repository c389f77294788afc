/**
 * Captured steps: fn runs once, its kernel calls are recorded and, if wanted, made; replaying them costs no JavaScript.
 *
 * What may change between replays lives in tensors that were made outside: write new values into them (batches, the
 * learning rate, random state) before run(). Tensors that fn returns keep their place and hold the newest result.
 */
import type { Device, KernelCall, Memory, Program } from '../backend/device.ts';
import { type Storage, scope } from './scope.ts';

interface Recorder {
  readonly calls: KernelCall[];
  readonly made: Storage[];
  /** False: calls are noted and not made. */
  readonly runs: boolean;
}

let recorder: Recorder | null = null;

export const activeRecorder = (): Recorder | null => recorder;

/** Makes a call, notes it, or both. */
export function issue(device: Device, call: KernelCall): void {
  if (!recorder || recorder.runs) device.dispatch(call);
  recorder?.calls.push(call);
}

export interface Captured<R> {
  /** What fn returned; its tensors hold the results of the latest run. */
  readonly result: R;
  readonly program: Program;
  run(): Promise<void>;
  dispose(): void;
}

/** Runs fn once and returns it as a program. fn must do the same calls on the same shapes every time. */
export const capture = <R>(device: Device, fn: () => R): Captured<R> => recorded(device, fn, true);

/**
 * The same without computing anything: what fn returns has no values before the first run(), and what its calls write in
 * place is written by run() alone. It takes as long as the JavaScript of fn.
 */
export const record = <R>(device: Device, fn: () => R): Captured<R> => recorded(device, fn, false);

function recorded<R>(device: Device, fn: () => R, runs: boolean): Captured<R> {
  if (recorder) throw new Error('capture() cannot be nested');
  const record: Recorder = { calls: [], made: [], runs };
  recorder = record;
  let result: R;
  try {
    result = scope(fn);
  } finally {
    recorder = null;
  }
  const temporaries = new Set<Memory>();
  for (const storage of record.made) if (storage.released) temporaries.add(storage.memory);
  const program = device.compile({ calls: record.calls, temporaries });
  return { result, program, run: () => program.run(), dispose: () => program.dispose() };
}

/** Runs fn and returns the calls it made, without keeping a program: for accounting. */
export function trace<R>(fn: () => R): { result: R; calls: readonly KernelCall[] } {
  if (recorder) throw new Error('trace() cannot run inside capture()');
  const record: Recorder = { calls: [], made: [], runs: true };
  recorder = record;
  try {
    return { result: fn(), calls: record.calls };
  } finally {
    recorder = null;
  }
}
