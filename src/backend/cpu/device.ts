/** The CPU: native kernels over host memory, called through one shared command buffer. */
import { totalmem } from 'node:os';
import { Accounting, memoryId } from '../accounting.ts';
import type {
  Arg,
  Device,
  DeviceInfo,
  FileMemory,
  KernelCall,
  Memory,
  MemoryStats,
  Program,
  Recording,
} from '../device.ts';
import type { ElementType, HostArray } from '../dtype.ts';
import { dtypeCode, sizeOf } from '../dtype.ts';
import { AnsatzError } from '../errors.ts';
import { type Native, type NativeProgram, native } from '../native.ts';
import { MappedFile } from './mapped.ts';
import { CpuProgram } from './program.ts';

export class CpuMemory implements Memory {
  readonly id = memoryId();
  readonly dtype: ElementType;
  readonly elements: number;
  readonly bytes: number;
  /** Address in this process; 0 once released. Exact as a double: addresses stay below 2^53. */
  address: number;
  /** The file that it is a part of. */
  readonly file?: MappedFile;

  constructor(dtype: ElementType, elements: number, bytes: number, address: number, file?: MappedFile) {
    this.dtype = dtype;
    this.elements = elements;
    this.bytes = bytes;
    this.address = address;
    this.file = file;
  }

  get readOnly(): boolean {
    return this.file !== undefined;
  }
}

/** Where a tensor argument lies; the program compiler overrides this for arena memory. */
export type AddressOf = (arg: Arg) => number;

const addressOf: AddressOf = (arg) => (arg.memory as CpuMemory).address + arg.offset * sizeOf(arg.memory.dtype);

/** Where eager calls are written: one buffer for the JavaScript thread, whatever number of devices it opens. */
const words = new Float64Array(4096);

export class CpuDevice implements Device {
  readonly kind = 'cpu';
  private readonly native: Native;
  private readonly ids = new Map<string, number>();
  private readonly accounting = new Accounting();
  /** Replays under way: what reads and sync() wait for. */
  private readonly runs = new Set<Promise<unknown>>();

  constructor() {
    this.native = native();
    const forced = process.env.ANSATZ_ISA;
    const { levels } = this.native.facts();
    if (forced && !levels.includes(forced))
      throw new AnsatzError(`ANSATZ_ISA=${forced} is not an instruction-set level of this CPU and build`, {
        hint: `choose from ${levels.join(', ')}, or unset it`,
      });
    this.native.attach(words);
    this.native.kernels().forEach((name, id) => {
      this.ids.set(name, id);
    });
  }

  /** Names of the kernels that the addon was built with. */
  kernels(): string[] {
    return [...this.ids.keys()];
  }

  allocate(dtype: ElementType, elements: number): CpuMemory {
    const bytes = elements * sizeOf(dtype);
    const address = this.native.allocate(Math.max(bytes, 1));
    if (address === 0)
      throw new AnsatzError(`out of memory: ${(bytes / 2 ** 30).toFixed(2)} GiB more were refused by the system`, {
        hint: 'use a smaller batch or model; `ansatz inspect RECIPE` shows what fits',
      });
    const memory = new CpuMemory(dtype, elements, bytes, address);
    this.accounting.add(memory);
    return memory;
  }

  release(memory: Memory): void {
    const m = memory as CpuMemory;
    if (m.address === 0) return;
    if (m.file) m.file.leave();
    else this.native.release(m.address, Math.max(m.bytes, 1));
    m.address = 0;
    this.accounting.remove(m);
  }

  /** ANSATZ_MMAP=0 has files read. */
  mapFile(fd: number, bytes: number, path: string): FileMemory | null {
    const address = process.env.ANSATZ_MMAP === '0' ? 0 : this.native.map(fd, bytes, path);
    if (address === 0) return null;
    const file = new MappedFile(fd, path, address, bytes, () => this.native.unmap(address, bytes));
    return {
      at: (offset, dtype, elements) => {
        const size = elements * sizeOf(dtype);
        if (!file.holds(offset, size)) return null;
        file.enter();
        const memory = new CpuMemory(dtype, elements, size, address + offset, file);
        this.accounting.add(memory);
        return memory;
      },
      close: () => file.leave(),
    };
  }

  write(memory: Memory, offset: number, data: HostArray): void {
    this.check(memory, offset, data.length);
    if (memory.readOnly)
      throw new AnsatzError(
        `${(memory as CpuMemory).file!.path}: its weights are used in place and cannot be written to`,
        {
          hint: 'copy them first, or set ANSATZ_MMAP=0',
        },
      );
    this.native.write(addressOf({ memory, offset }), data);
  }

  async read(memory: Memory, offset: number, out: HostArray): Promise<void> {
    if (this.runs.size > 0) await this.sync();
    this.readSync(memory, offset, out);
  }

  readSync(memory: Memory, offset: number, out: HostArray): void {
    this.check(memory, offset, out.length);
    this.native.read(addressOf({ memory, offset }), out);
  }

  dispatch(call: KernelCall): void {
    this.encode(call, words, 0, addressOf);
    this.native.exec();
  }

  compile(recording: Recording): Program {
    return new CpuProgram(this, this.native, recording);
  }

  /** Queues a replay of a compiled program. */
  async replay(program: NativeProgram, profile: boolean): Promise<Float64Array | undefined> {
    const run = this.native.run(program, profile);
    this.runs.add(run);
    try {
      return await run;
    } finally {
      this.runs.delete(run);
    }
  }

  async sync(): Promise<void> {
    await Promise.allSettled(this.runs);
  }

  memory(): MemoryStats {
    return this.accounting.stats(this.native.facts().cachedBytes);
  }

  /** Gives memory kept for reuse back to the system. */
  trim(): void {
    this.native.trim();
  }

  info(): DeviceInfo {
    const f = this.native.facts();
    return { kind: 'cpu', name: f.cpu, threads: f.threads, level: f.level, levels: f.levels, totalBytes: totalmem() };
  }

  /** Chooses an instruction-set level (tests walk them all). Programs compiled before keep theirs. */
  useLevel(level: string): void {
    if (!this.native.useLevel(level))
      throw new AnsatzError(`instruction-set level '${level}' is not available on this machine`, {
        hint: `choose from ${this.native.facts().levels.join(', ')}`,
      });
  }

  useThreads(threads: number): void {
    this.native.useThreads(threads);
  }

  /** Writes a call as the words native/core/program.h describes; returns the position after it. */
  encode(call: KernelCall, words: Float64Array, at: number, address: AddressOf): number {
    const id = this.ids.get(call.kernel);
    if (id === undefined)
      throw new AnsatzError(`the cpu device has no kernel '${call.kernel}'`, { hint: 'npm run build' });
    const { args, ints, floats } = call;
    words[at++] = id;
    words[at++] = args.length;
    words[at++] = ints.length;
    words[at++] = floats.length;
    for (let k = 0; k < args.length; k++) {
      const arg = args[k];
      if (arg) {
        words[at++] = address(arg);
        words[at++] = dtypeCode[arg.memory.dtype];
      } else {
        words[at++] = 0;
        words[at++] = 0;
      }
    }
    for (let k = 0; k < ints.length; k++) words[at++] = ints[k];
    for (let k = 0; k < floats.length; k++) words[at++] = floats[k];
    return at;
  }

  private check(memory: Memory, offset: number, length: number): void {
    if ((memory as CpuMemory).address === 0) throw new AnsatzError('this tensor was released: its scope has ended');
    if (offset < 0 || offset + length > memory.elements)
      throw new RangeError(`host copy of ${length} elements at ${offset} leaves an allocation of ${memory.elements}`);
  }
}
