/**
 * Captured steps: fn runs once, eagerly, while its kernel calls are recorded; replaying them costs no JavaScript.
 *
 * What may change between replays lives in tensors that were made outside: write new values into them (batches, the
 * learning rate, random state) before run(). Tensors that fn returns keep their place and hold the newest result.
 */
import type { Device, KernelCall, Memory, Program } from '../backend/device.ts';
import { type Storage, scope } from './scope.ts';

interface Recorder {
  readonly calls: KernelCall[];
  readonly made: Storage[];
}

let recorder: Recorder | null = null;

export const activeRecorder = (): Recorder | null => recorder;

export interface Captured<R> {
  /** What fn returned; its tensors hold the results of the latest run. */
  readonly result: R;
  readonly program: Program;
  run(): Promise<void>;
  dispose(): void;
}

/** Runs fn once and returns it as a program. fn must do the same calls on the same shapes every time. */
export function capture<R>(device: Device, fn: () => R): Captured<R> {
  if (recorder) throw new Error('capture() cannot be nested');
  const record: Recorder = { calls: [], made: [] };
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
  const record: Recorder = { calls: [], made: [] };
  recorder = record;
  try {
    return { result: fn(), calls: record.calls };
  } finally {
    recorder = null;
  }
}
