/**
 * The seam between what is computed and who computes it. Everything above it (tensors, models, training) speaks to a
 * Device in kernel calls (docs/kernels.md); everything below it is native code, a float64 reference, or nothing at all.
 *
 * - Eager: dispatch() runs a call, or queues it on the device's stream. Host reads are asynchronous, so that a device
 *   with memory of its own never stalls the event loop; readSync is for tests and small values.
 * - Captured: record() notes the calls of one step; compile() lays their temporaries out in one arena and returns a
 *   Program that replays all of them in one asynchronous native call. On CUDA that is a graph on a stream.
 */
import type { ElementType, HostArray } from './dtype.ts';

export type DeviceKind = 'cpu' | 'cuda' | 'meta' | 'ref';

/** An allocation on a device. Opaque: only its own device looks inside. */
export interface Memory {
  readonly dtype: ElementType;
  readonly elements: number;
  readonly bytes: number;
  /** Distinguishes allocations in records and plans. */
  readonly id: number;
  /** A file's own bytes: they can be read, and nothing may write to them. */
  readonly readOnly?: boolean;
}

/** A file whose bytes serve as memory. */
export interface FileMemory {
  /** Memory over a part of it; null where it lies so that kernels could not read it. Released like any other. */
  at(offset: number, dtype: ElementType, elements: number): Memory | null;
  /** Nothing more will be taken from it; what was taken stays. */
  close(): void;
}

/** A tensor argument of a call: an allocation and where the tensor starts in it, in elements. */
export interface Arg {
  readonly memory: Memory;
  readonly offset: number;
}

export interface KernelCall {
  readonly kernel: string;
  readonly args: readonly (Arg | null)[];
  readonly ints: readonly number[];
  readonly floats: readonly number[];
  /** Cost, filled in by the op table; profiles and utilisation read it. */
  readonly cost?: Cost;
}

/** What a call does at least: floating-point operations, and bytes of tensors read and written. */
export interface Cost {
  readonly flops: number;
  readonly bytes: number;
}

export interface MemoryStats {
  /** Bytes in live allocations, the most there ever were, and bytes kept for reuse. */
  readonly liveBytes: number;
  readonly peakBytes: number;
  readonly cachedBytes: number;
  readonly liveAllocations: number;
}

export interface DeviceInfo {
  readonly kind: DeviceKind;
  readonly name: string;
  readonly threads: number;
  /** Instruction-set level (cpu) or compute capability (cuda) in use, and those available. */
  readonly level: string;
  readonly levels: readonly string[];
  /** Bytes the device can hold. */
  readonly totalBytes: number;
}

/** A recorded step with its memory planned. */
export interface Program {
  readonly calls: readonly KernelCall[];
  readonly arenaBytes: number;
  /** Replays the step off the JavaScript thread. Runs queue in order. */
  run(): Promise<void>;
  /** Replays once and returns the nanoseconds each call took, in the order of `calls`. */
  profile(): Promise<Float64Array>;
  dispose(): void;
}

/** A record of one step: its calls in order, and the allocations that only live inside it. */
export interface Recording {
  readonly calls: readonly KernelCall[];
  readonly temporaries: ReadonlySet<Memory>;
}

export interface Device {
  readonly kind: DeviceKind;
  allocate(dtype: ElementType, elements: number): Memory;
  release(memory: Memory): void;
  /**
   * An open file as memory, without reading it. Null, or absent: this device cannot, and the file is to be read.
   * `path` is for messages.
   */
  mapFile?(fd: number, bytes: number, path: string): FileMemory | null;
  /** Copies host data in, from element `offset` on. The array's type must carry the memory's dtype. */
  write(memory: Memory, offset: number, data: HostArray): void;
  read(memory: Memory, offset: number, out: HostArray): Promise<void>;
  readSync(memory: Memory, offset: number, out: HostArray): void;
  dispatch(call: KernelCall): void;
  compile(recording: Recording): Program;
  /** Resolves when everything dispatched so far is done. */
  sync(): Promise<void>;
  memory(): MemoryStats;
  info(): DeviceInfo;
}
