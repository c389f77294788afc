/** Shapes only: allocates nothing and computes nothing, so that a 1.8T-parameter model can be planned on a laptop. */
import { Accounting, memoryId } from '../accounting.ts';
import type { Device, DeviceInfo, KernelCall, Memory, MemoryStats, Program, Recording } from '../device.ts';
import type { ElementType, HostArray } from '../dtype.ts';
import { sizeOf } from '../dtype.ts';
import { AnsatzError } from '../errors.ts';
import { planArena } from '../plan.ts';

const noValues = (): never => {
  throw new AnsatzError('the meta device holds shapes, not values', {
    hint: 'use device cpu to compute (--set device=cpu)',
  });
};

export class MetaDevice implements Device {
  readonly kind = 'meta';
  private readonly accounting = new Accounting();

  allocate(dtype: ElementType, elements: number): Memory {
    const memory = { id: memoryId(), dtype, elements, bytes: elements * sizeOf(dtype) };
    this.accounting.add(memory);
    return memory;
  }

  release(memory: Memory): void {
    this.accounting.remove(memory);
  }

  write(_memory: Memory, _offset: number, _data: HostArray): void {}

  async read(): Promise<void> {
    noValues();
  }

  readSync(): void {
    noValues();
  }

  dispatch(_call: KernelCall): void {}

  compile(recording: Recording): Program {
    return {
      calls: recording.calls,
      arenaBytes: planArena(recording.calls, recording.temporaries).bytes,
      run: async () => {},
      profile: async () => new Float64Array(recording.calls.length),
      dispose: () => {},
    };
  }

  async sync(): Promise<void> {}

  memory(): MemoryStats {
    return this.accounting.stats();
  }

  info(): DeviceInfo {
    return { kind: 'meta', name: 'shapes only', threads: 0, level: 'none', levels: [], totalBytes: Infinity };
  }
}
