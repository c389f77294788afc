/**
 * Who frees a tensor: the scope it was made in.
 *
 * Everything made inside scope(fn) is freed when fn returns, except what fn returns (it passes to the enclosing scope)
 * and what was keep()-ed. Outside any scope a tensor is freed when it is garbage-collected, or by dispose().
 */
import type { Device, Memory } from '../backend/device.ts';

/** An allocation that one or more tensors view. */
export class Storage {
  readonly device: Device;
  readonly memory: Memory;
  released = false;
  /** The scope that will free it; null when kept or owned by the garbage collector. */
  scope: Scope | null = null;

  constructor(device: Device, memory: Memory) {
    this.device = device;
    this.memory = memory;
    if (current) current.add(this);
    else collected.register(this, { device, memory, alive: this.alive }, this);
  }

  /** Shared with the finaliser, so that an explicit release is not followed by a second one. */
  private readonly alive = { value: true };

  release(): void {
    if (this.released) return;
    this.released = true;
    this.alive.value = false;
    collected.unregister(this);
    this.device.release(this.memory);
  }

  /** Takes the storage out of its scope: it then lives until release() or garbage collection. */
  keep(): void {
    if (!this.scope) return;
    this.scope.remove(this);
    this.scope = null;
    collected.register(this, { device: this.device, memory: this.memory, alive: this.alive }, this);
  }
}

const collected = new FinalizationRegistry<{ device: Device; memory: Memory; alive: { value: boolean } }>((held) => {
  if (!held.alive.value) return;
  held.alive.value = false;
  held.device.release(held.memory);
});

export class Scope {
  readonly parent: Scope | null;
  private readonly storages = new Set<Storage>();

  constructor(parent: Scope | null) {
    this.parent = parent;
  }

  add(storage: Storage): void {
    this.storages.add(storage);
    storage.scope = this;
  }

  remove(storage: Storage): void {
    this.storages.delete(storage);
  }

  /** Frees all but `kept`, which pass to the parent scope. */
  end(kept: ReadonlySet<Storage>): void {
    for (const storage of this.storages) {
      if (!kept.has(storage)) {
        storage.scope = null;
        storage.release();
      } else if (this.parent) this.parent.add(storage);
      else storage.keep();
    }
    this.storages.clear();
  }
}

let current: Scope | null = null;

/** Anything that holds tensors: found by walking arrays, maps and plain objects of a scope's result. */
export interface HasStorage {
  readonly storage: Storage;
}

const holds = (value: object): value is HasStorage => (value as HasStorage).storage instanceof Storage;

function collect(value: unknown, into: Set<Storage>): void {
  if (typeof value !== 'object' || value === null) return;
  if (holds(value)) into.add(value.storage);
  else if (Array.isArray(value)) for (const v of value) collect(v, into);
  else if (value instanceof Map) for (const v of value.values()) collect(v, into);
  else if (Object.getPrototypeOf(value) === Object.prototype) for (const v of Object.values(value)) collect(v, into);
}

/**
 * Runs fn and frees every tensor made in it that it does not return.
 * fn must be synchronous: an asynchronous one would free its tensors before they are used, so it is refused.
 */
export function scope<R>(fn: () => R): R {
  const inner = new Scope(current);
  current = inner;
  const kept = new Set<Storage>();
  try {
    const result = fn();
    if (result instanceof Promise) throw new TypeError('scope() takes a synchronous function: read results outside it');
    collect(result, kept);
    return result;
  } finally {
    current = inner.parent;
    inner.end(kept);
  }
}
