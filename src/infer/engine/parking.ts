/** Sequences that wait for their readers. They have no place in passes; their pages are theirs until others need them. */
import type { Sequence } from './sequence.ts';

export class Parking {
  private readonly parked = new Set<Sequence>();
  private readonly wake: () => void;

  /** @param wake called when one may go on, or is no longer wanted */
  constructor(wake: () => void) {
    this.wake = wake;
  }

  get size(): number {
    return this.parked.size;
  }

  /** Whether one may go on. */
  get ready(): boolean {
    for (const s of this.parked) if (!paused(s)) return true;
    return false;
  }

  add(s: Sequence): void {
    this.parked.add(s);
    void s.request.flow!.resumed(s.request.signal).then(this.wake);
  }

  /** Those that go on now, in the order in which they came. */
  leaving(): Sequence[] {
    const left = [...this.parked].filter((s) => !paused(s));
    for (const s of left) this.parked.delete(s);
    return left;
  }

  /** All of them, at the end. */
  clear(): Sequence[] {
    const all = [...this.parked];
    this.parked.clear();
    return all;
  }

  /** One that holds pages, or what an encoder has read; the one that came last first, as with those that run. */
  holding(): Sequence | undefined {
    return [...this.parked].reverse().find((s) => s.pages !== null || s.memory !== null);
  }
}

/** Whether a sequence has to wait for its reader; one that is no longer wanted has not. */
export const paused = ({ request: { flow, signal } }: Sequence): boolean => flow?.paused === true && !signal?.aborted;
