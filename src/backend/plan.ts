/**
 * Lays the temporaries of a recorded step out in one arena.
 *
 * Each temporary lives from the first call that touches it to the last. Largest first, each is put at the lowest
 * offset where it overlaps nothing that lives at the same time (greedy by size: Pisarchyk and Lee 2020,
 * "Efficient Memory Management for Deep Neural Net Inference").
 */
import type { KernelCall, Memory } from './device.ts';

export interface ArenaPlan {
  /** Byte offset in the arena of each temporary. */
  readonly offsets: ReadonlyMap<Memory, number>;
  readonly bytes: number;
  /** Sum of the sizes: what it would take without sharing. */
  readonly unsharedBytes: number;
}

interface Interval {
  memory: Memory;
  first: number;
  last: number;
  size: number;
  offset: number;
}

const align = (bytes: number): number => Math.ceil(bytes / 256) * 256;

export function planArena(calls: readonly KernelCall[], temporaries: ReadonlySet<Memory>): ArenaPlan {
  const intervals = new Map<Memory, Interval>();
  calls.forEach((call, k) => {
    for (const arg of call.args) {
      if (!arg || !temporaries.has(arg.memory)) continue;
      const known = intervals.get(arg.memory);
      if (known) known.last = k;
      else {
        const size = align(arg.memory.bytes);
        intervals.set(arg.memory, { memory: arg.memory, first: k, last: k, size, offset: 0 });
      }
    }
  });

  const order = [...intervals.values()].sort((a, b) => b.size - a.size || a.first - b.first);
  const placed: Interval[] = []; // by offset
  let bytes = 0;
  for (const item of order) {
    let offset = 0;
    for (const other of placed) {
      if (other.last < item.first || other.first > item.last) continue;
      if (offset + item.size <= other.offset) break;
      offset = Math.max(offset, other.offset + other.size);
    }
    item.offset = offset;
    bytes = Math.max(bytes, offset + item.size);
    let at = placed.length;
    while (at > 0 && placed[at - 1].offset > offset) at--;
    placed.splice(at, 0, item);
  }
  const unsharedBytes = order.reduce((sum, item) => sum + item.size, 0);
  return { offsets: new Map(order.map((item) => [item.memory, item.offset])), bytes, unsharedBytes };
}
