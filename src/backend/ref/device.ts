/** The reference: naive float64 TypeScript behind the same seam. Slow on purpose; tests measure the others against it. */
import { totalmem } from 'node:os';
import { Accounting, memoryId } from '../accounting.ts';
import type { Device, DeviceInfo, KernelCall, Memory, MemoryStats, Program, Recording } from '../device.ts';
import { bf16Bits, bf16Value, type ElementType, type HostArray, sizeOf } from '../dtype.ts';
import { planArena } from '../plan.ts';
import { type RefArray, type RefCall, refKernels } from './index.ts';

export class RefMemory implements Memory {
  readonly id = memoryId();
  readonly dtype: ElementType;
  readonly elements: number;
  readonly bytes: number;
  /** Floats in full float64 precision, whatever the dtype. */
  readonly values: RefArray;

  constructor(dtype: ElementType, elements: number) {
    this.dtype = dtype;
    this.elements = elements;
    this.bytes = elements * sizeOf(dtype);
    this.values =
      dtype === 'i32'
        ? new Int32Array(elements)
        : dtype === 'u8'
          ? new Uint8Array(elements)
          : new Float64Array(elements).fill(Number.NaN);
  }
}

export class RefDevice implements Device {
  readonly kind = 'ref';
  private readonly accounting = new Accounting();

  kernels(): string[] {
    return Object.keys(refKernels);
  }

  allocate(dtype: ElementType, elements: number): RefMemory {
    const memory = new RefMemory(dtype, elements);
    this.accounting.add(memory);
    return memory;
  }

  release(memory: Memory): void {
    this.accounting.remove(memory);
  }

  write(memory: Memory, offset: number, data: HostArray): void {
    const { values, dtype } = memory as RefMemory;
    for (let k = 0; k < data.length; k++) values[offset + k] = dtype === 'bf16' ? bf16Value(data[k]) : data[k];
  }

  async read(memory: Memory, offset: number, out: HostArray): Promise<void> {
    this.readSync(memory, offset, out);
  }

  readSync(memory: Memory, offset: number, out: HostArray): void {
    const { values, dtype } = memory as RefMemory;
    for (let k = 0; k < out.length; k++) out[k] = dtype === 'bf16' ? bf16Bits(values[offset + k]) : values[offset + k];
  }

  dispatch(call: KernelCall): void {
    const kernel = refKernels[call.kernel];
    if (!kernel) throw new Error(`the reference has no kernel '${call.kernel}'`);
    const memories = call.args.map((a) => (a ? (a.memory as RefMemory).values : null));
    const refCall: RefCall = {
      p: call.args.map((a, k) => (a ? memories[k]!.subarray(a.offset) : null)),
      m: memories,
      o: call.args.map((a) => a?.offset ?? 0),
      t: call.args.map((a) => a?.memory.dtype ?? 'f32'),
      i: call.ints,
      f: call.floats,
    };
    kernel(refCall);
  }

  compile(recording: Recording): Program {
    const replay = (): void => {
      for (const call of recording.calls) this.dispatch(call);
    };
    return {
      calls: recording.calls,
      arenaBytes: planArena(recording.calls, recording.temporaries).bytes,
      run: async () => replay(),
      profile: async () => {
        const out = new Float64Array(recording.calls.length);
        recording.calls.forEach((call, k) => {
          const start = process.hrtime.bigint();
          this.dispatch(call);
          out[k] = Number(process.hrtime.bigint() - start);
        });
        return out;
      },
      dispose: () => {},
    };
  }

  async sync(): Promise<void> {}

  memory(): MemoryStats {
    return this.accounting.stats();
  }

  info(): DeviceInfo {
    return {
      kind: 'ref',
      name: 'float64 reference',
      threads: 1,
      level: 'float64',
      levels: ['float64'],
      totalBytes: totalmem(),
    };
  }
}
