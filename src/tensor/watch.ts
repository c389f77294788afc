/** Looking on while a model runs: what an op was applied to, without any layer knowing. */
import type { Inputs } from './op.ts';
import type { Tensor } from './tensor.ts';

/** Called after an op has been dispatched; ops that it applies itself are not reported. */
export type Watcher = (op: string, inputs: Inputs, outputs: readonly Tensor[], params: unknown) => void;

let watcher: Watcher | null = null;

/** Whether ops are to be reported. */
export const watched = (): boolean => watcher !== null;

/** Reports an op that was applied. */
export function report(op: string, inputs: Inputs, outputs: readonly Tensor[], params: unknown): void {
  const told = watcher;
  watcher = null;
  try {
    told?.(op, inputs, outputs, params);
  } finally {
    watcher = told;
  }
}

/** Runs fn and tells `each` of every op in it. Inside capture(), what `each` computes is part of the program. */
export function watch<R>(each: Watcher, fn: () => R): R {
  const before = watcher;
  watcher = each;
  try {
    return fn();
  } finally {
    watcher = before;
  }
}
