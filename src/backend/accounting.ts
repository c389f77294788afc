/** Counts allocations of a device, for memory() and for leak tests. */
import type { Memory, MemoryStats } from './device.ts';

export class Accounting {
  private live = 0;
  private peak = 0;
  private count = 0;

  add(memory: Memory): void {
    this.live += memory.bytes;
    this.count++;
    if (this.live > this.peak) this.peak = this.live;
  }

  remove(memory: Memory): void {
    this.live -= memory.bytes;
    this.count--;
  }

  stats(cachedBytes = 0): MemoryStats {
    return { liveBytes: this.live, peakBytes: this.peak, cachedBytes, liveAllocations: this.count };
  }
}

let nextId = 1;

/** A process-wide id for an allocation. */
export const memoryId = (): number => nextId++;
