// Runs one kernel call on a device and on the float64 reference, and says where they differ.
import type { Device, Memory } from '../../src/backend/device.ts';
import { bf16Value, type ElementType, fromNumbers, type HostArray, hostArray } from '../../src/backend/dtype.ts';
import { type RefArray, refKernels } from '../../src/backend/ref/index.ts';
import { stored } from './kernel-cases/build.ts';
import type { KernelCase, TensorSpec, Tolerance } from './kernel-cases/types.ts';

/** What a device must offer to be tested. */
export type TestedDevice = Pick<Device, 'allocate' | 'release' | 'write' | 'readSync' | 'dispatch'>;

// What outputs hold before the call: on the device bits that no kernel computes (a NaN of its own), on the reference a
// number that no f32 has. Where the reference still holds it afterwards, the device must not have written either.
const POISON_BITS: Record<ElementType, number> = { f32: 0x7fc0dead, bf16: 0x7fde, i32: 0x5eadbeef, u8: 0xa5 };
const UNWRITTEN: Record<ElementType, number> = { f32: 1.25e300, bf16: 1.25e300, i32: 0x5eadbeef, u8: 0xa5 };
// Around a tensor that is only read lie NaNs: a kernel may load them beside the last elements, but not use them. Around
// one that is written lie numbers, so that a store of such a NaN shows too.
const GUARD_READ: Record<ElementType, number> = { f32: 0x7fc00000, bf16: 0x7fc0, i32: 0x4b1dface, u8: 0x4b };
const GUARD_WRITTEN: Record<ElementType, number> = { f32: 0x4b1dface, bf16: 0x4b1d, i32: 0x4b1dface, u8: 0x4b };
const GUARD = 16;

/** An unsigned view of a host array's bits. */
function bitsOf(data: HostArray): Uint32Array | Uint16Array | Uint8Array {
  if (data instanceof Float32Array || data instanceof Int32Array) {
    return new Uint32Array(data.buffer, data.byteOffset, data.length);
  }
  return data;
}

/** One allocation: the tensor of an argument that is not an alias, between guard words. */
interface Storage {
  readonly spec: TensorSpec;
  readonly front: number;
  readonly before: HostArray;
  readonly ref: RefArray;
  /** Elements that an output covers. */
  readonly written: { begin: number; end: number }[];
}

function refArray(spec: TensorSpec): RefArray {
  if (spec.data) return spec.data.slice();
  const Type = spec.dtype === 'i32' ? Int32Array : spec.dtype === 'u8' ? Uint8Array : Float64Array;
  return new Type(spec.length).fill(UNWRITTEN[spec.dtype]);
}

function storageOf(spec: TensorSpec, front: number, isWritten: boolean): Storage {
  const before = hostArray(spec.dtype, front + spec.length + GUARD);
  const bits = bitsOf(before).fill((isWritten ? GUARD_WRITTEN : GUARD_READ)[spec.dtype]);
  if (spec.data) before.set(fromNumbers(spec.dtype, spec.data), front);
  else bits.fill(POISON_BITS[spec.dtype], front, front + spec.length);
  return { spec, front, before, ref: refArray(spec), written: [] };
}

interface Placed {
  readonly storage: Storage;
  /** Element of the storage's tensor at which the argument points. */
  readonly at: number;
}

/** Lays the arguments out. Tensors start at odd elements now and then: a view may start anywhere. */
function place(test: KernelCase): (Placed | null)[] {
  const hostOf = (k: number) => test.p[k]?.alias?.arg ?? k;
  const hosts = new Set(test.p.map((spec, k) => (spec && spec.role !== 'in' ? hostOf(k) : -1)));
  const own = test.p.map((spec, k) =>
    spec && !spec.alias ? storageOf(spec, GUARD + ((test.label.length + k) % 4), hosts.has(k)) : null,
  );
  return test.p.map((spec, k) => {
    if (!spec) return null;
    const storage = own[hostOf(k)];
    if (!storage) throw new Error(`${test.label}: argument ${k} is an alias of nothing`);
    const start = spec.alias?.offset ?? 0;
    if (spec.role !== 'in') storage.written.push({ begin: start, end: start + spec.length });
    return { storage, at: start + (spec.origin ?? 0) };
  });
}

function runReference(test: KernelCase, placed: readonly (Placed | null)[]): void {
  refKernels[test.kernel]({
    p: placed.map((arg) => (arg ? arg.storage.ref.subarray(arg.at) : null)),
    m: placed.map((arg) => (arg ? arg.storage.ref : null)),
    o: placed.map((arg) => arg?.at ?? 0),
    t: test.p.map((spec) => spec?.dtype ?? 'f32'),
    i: test.i,
    f: test.f,
  });
}

/** Runs the call on a device; returns what its allocations hold afterwards, or the message of the error it raised. */
function runDevice(
  device: TestedDevice,
  test: KernelCase,
  placed: readonly (Placed | null)[],
): Map<Storage, HostArray> | string {
  const memories = new Map<Storage, Memory>();
  try {
    for (const arg of placed) {
      if (!arg || memories.has(arg.storage)) continue;
      const { before, spec } = arg.storage;
      const memory = device.allocate(spec.dtype, before.length);
      memories.set(arg.storage, memory);
      device.write(memory, 0, before);
    }
    device.dispatch({
      kernel: test.kernel,
      args: placed.map((arg) => arg && { memory: memories.get(arg.storage)!, offset: arg.storage.front + arg.at }),
      ints: test.i,
      floats: test.f,
    });
    const after = new Map<Storage, HostArray>();
    for (const [storage, memory] of memories) {
      const out = hostArray(memory.dtype, memory.elements);
      device.readSync(memory, 0, out);
      after.set(storage, out);
    }
    return after;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  } finally {
    for (const memory of memories.values()) device.release(memory);
  }
}

const MAX_FINITE = 3.3e38; // next to overflow, a rounding more or less decides
const SMALLEST_NORMAL = 1.2e-38; // devices may flush what lies below to zero

/** Error allowed in one element: that of the arithmetic, and half an ulp of bf16 (2^-8 |ref|) where it is stored so. */
function allowed(ref: number, dtype: ElementType, { rtol, atol, l2 }: Tolerance): number {
  if (rtol + atol + l2 === 0) return 0;
  const storage = dtype === 'bf16' ? 2 ** -8 : 0;
  return (rtol + storage) * Math.abs(ref) + atol + SMALLEST_NORMAL;
}

function sameElement(value: number, ref: number, dtype: ElementType, tolerance: Tolerance): boolean {
  if (Number.isNaN(ref)) return Number.isNaN(value);
  if (value === ref) return true;
  if (Math.abs(ref) > MAX_FINITE) return Math.abs(value) > 0.98 * MAX_FINITE && Math.sign(value) === Math.sign(ref);
  return Math.abs(value - ref) <= allowed(ref, dtype, tolerance);
}

/** Compares one allocation after the call with the reference; null when all is well. */
function compareStorage(storage: Storage, after: HostArray, tolerance: Tolerance): string | null {
  const { spec, front, before, ref, written } = storage;
  const [bits, bitsBefore] = [bitsOf(after), bitsOf(before)];
  const { atol, l2 } = tolerance;
  const covered = (at: number) => written.some(({ begin, end }) => at >= begin && at < end);
  let [bad, first, error2, norm2] = [0, '', 0, 0];
  const fault = (message: string) => {
    if (bad++ === 0) first = message;
  };
  for (let k = 0; k < after.length; k++) {
    const at = k - front;
    if (at < 0 || at >= spec.length) {
      if (bits[k] !== bitsBefore[k]) return `wrote outside the tensor, at element ${at} of ${spec.length}`;
      continue;
    }
    if (!covered(at)) {
      if (bits[k] !== bitsBefore[k]) fault(`an input changed at ${at}`);
      continue;
    }
    if (spec.open?.includes(at)) continue;
    const value = spec.dtype === 'bf16' ? bf16Value(after[k]) : after[k];
    if (ref[at] === UNWRITTEN[spec.dtype] && !spec.data) {
      if (bits[k] !== POISON_BITS[spec.dtype]) fault(`[${at}] is ${value}, must not be written`);
      continue;
    }
    if (spec.dtype !== 'u8' && !spec.data && bits[k] === POISON_BITS[spec.dtype]) {
      fault(`[${at}] was not written (ref ${ref[at]})`);
      continue;
    }
    const expected = tolerance.l2 === 0 || spec.dtype === 'i32' ? stored(spec.dtype, ref[at]) : ref[at];
    if (!sameElement(value, expected, spec.dtype, spec.dtype === 'i32' || spec.dtype === 'u8' ? EXACT : tolerance)) {
      fault(
        `[${at}] is ${value}, ref ${expected} (allowed error ${allowed(expected, spec.dtype, tolerance).toExponential(2)})`,
      );
    }
    if (Number.isFinite(value) && Math.abs(expected) < MAX_FINITE) {
      error2 += (value - expected) ** 2;
      norm2 += expected ** 2;
    }
  }
  if (bad > 0) return `${bad} of ${spec.length} elements wrong: ${first}`;
  // The norm of the error: relative to that of the reference, plus a tenth of atol an element, for tensors that cancel.
  const limit = l2 + (spec.dtype === 'bf16' && l2 > 0 ? 2 ** -8 : 0);
  const bound = limit * Math.sqrt(norm2) + 0.1 * atol * Math.sqrt(spec.length) + SMALLEST_NORMAL;
  if (spec.length >= 16 && l2 > 0 && Math.sqrt(error2) > bound) {
    const relative = Math.sqrt(error2 / norm2);
    return `relative L2 error ${relative.toExponential(2)} over ${spec.length} elements, allowed ${limit.toExponential(2)}`;
  }
  return null;
}

const EXACT: Tolerance = { rtol: 0, atol: 0, l2: 0 };

/**
 * Prepares a case once (the reference runs here), for any number of devices or device settings.
 * The returned function runs it and gives null, or what was wrong.
 */
export function prepareCase(test: KernelCase): (device: TestedDevice) => string | null {
  const placed = place(test);
  let refError: string | null = null;
  try {
    runReference(test, placed);
  } catch (error) {
    refError = (error as Error).message;
  }
  if (refError !== (test.error ?? null))
    return () => `${test.label}: the reference raised ${refError}, not ${test.error}`;
  return (device) => {
    const after = runDevice(device, test, placed);
    if (typeof after === 'string')
      return test.error && after.endsWith(test.error) ? null : `${test.label}: raised '${after}'`;
    if (test.error) return `${test.label}: did not raise '${test.error}'`;
    const faults: string[] = [];
    for (const [storage, values] of after) {
      const fault = compareStorage(storage, values, test.tolerance);
      if (fault) faults.push(`argument ${placed.findIndex((arg) => arg?.storage === storage)}: ${fault}`);
    }
    return faults.length > 0 ? `${test.label}: ${faults.join('; ')}` : null;
  };
}

/** Runs one case on one device: null, or what was wrong. */
export const runCase = (device: TestedDevice, test: KernelCase): string | null => prepareCase(test)(device);

/** What a device computes for a case: its allocations' contents in argument order, for bit-for-bit comparisons. */
export function outputsOf(device: TestedDevice, test: KernelCase): HostArray[] {
  const after = runDevice(device, test, place(test));
  if (typeof after === 'string') throw new Error(`${test.label}: raised '${after}'`);
  return [...after.values()];
}
