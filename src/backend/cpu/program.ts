/** A captured step on the CPU: its calls as one list of words, its temporaries in one arena. */
import type { Arg, KernelCall, Program, Recording } from '../device.ts';
import { sizeOf } from '../dtype.ts';
import type { Native, NativeProgram } from '../native.ts';
import { planArena } from '../plan.ts';
import type { CpuDevice, CpuMemory } from './device.ts';
import type { MappedFile } from './mapped.ts';

export class CpuProgram implements Program {
  readonly calls: readonly KernelCall[];
  readonly arenaBytes: number;
  private readonly device: CpuDevice;
  private readonly arena: CpuMemory;
  /** Files that it reads weights from. */
  private readonly files: ReadonlySet<MappedFile>;
  private handle: NativeProgram | undefined;
  /** Runs that are queued or under way. */
  private running = 0;

  constructor(device: CpuDevice, native: Native, recording: Recording) {
    this.device = device;
    this.calls = recording.calls;
    const args = recording.calls.flatMap((c) => c.args);
    this.files = new Set(args.flatMap((arg) => (arg?.memory as CpuMemory | undefined)?.file ?? []));
    const plan = planArena(recording.calls, recording.temporaries);
    this.arenaBytes = plan.bytes;
    this.arena = device.allocate('u8', plan.bytes);
    const address = (arg: Arg): number => {
      const base = plan.offsets.get(arg.memory);
      const start = base === undefined ? (arg.memory as CpuMemory).address : this.arena.address + base;
      if (base === undefined && start === 0) throw new Error('a captured step uses memory that was freed: keep() it');
      return start + arg.offset * sizeOf(arg.memory.dtype);
    };
    const size = recording.calls.reduce((n, c) => n + 4 + 2 * c.args.length + c.ints.length + c.floats.length, 0);
    const words = new Float64Array(size);
    let at = 0;
    for (const call of recording.calls) at = device.encode(call, words, at, address);
    this.handle = native.program(words);
  }

  async run(): Promise<void> {
    await this.replay(false);
  }

  async profile(): Promise<Float64Array> {
    return (await this.replay(true)) as Float64Array;
  }

  dispose(): void {
    if (!this.handle) return;
    this.handle = undefined;
    if (this.running === 0) this.device.release(this.arena);
  }

  private async replay(profile: boolean): Promise<Float64Array | undefined> {
    if (!this.handle) throw new Error('this program was disposed');
    for (const file of this.files) file.check();
    this.running++;
    try {
      return await this.device.replay(this.handle, profile);
    } finally {
      // Disposed meanwhile: the last run gives the arena back.
      if (--this.running === 0 && !this.handle) this.device.release(this.arena);
    }
  }
}
