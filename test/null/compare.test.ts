// The kernel harness itself: it must pass a faithful device and catch each kind of fault.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { KernelCall } from '../../src/backend/device.ts';
import { RefDevice, type RefMemory } from '../../src/backend/ref/device.ts';
import { runCase } from '../support/compare.ts';
import { casesFor, type KernelCase, Rng } from '../support/kernel-cases/index.ts';

/** A device that computes right and then does something wrong to an argument's memory. */
class FaultyDevice extends RefDevice {
  private readonly damage: (values: RefMemory['values'], offset: number, call: KernelCall) => void;
  private readonly arg: number;

  constructor(arg: number, damage: (values: RefMemory['values'], offset: number, call: KernelCall) => void) {
    super();
    this.arg = arg;
    this.damage = damage;
  }

  override dispatch(call: KernelCall): void {
    super.dispatch(call);
    const at = call.args[this.arg]!;
    this.damage((at.memory as RefMemory).values, at.offset, call);
  }
}

const cases = (kernel: string): KernelCase[] => casesFor(kernel, new Rng(kernel));
const some = (kernel: string, suitable: (c: KernelCase) => boolean): KernelCase => cases(kernel).find(suitable)!;
const big = some('add', (c) => c.p[0]!.length > 100 && c.p.every((spec) => spec?.dtype === 'f32' && !spec.alias));
const soft = some('attention', ({ p }) => p[0]!.length > 1000 && p[0]!.dtype === 'f32' && p[0]!.role === 'out');

/** Damage that multiplies n elements by a factor. */
function scaled(n: number, factor: number): (values: RefMemory['values'], offset: number) => void {
  return (values, offset) => {
    for (let k = offset; k < offset + n; k++) values[k] *= factor;
  };
}

describe('kernel harness', () => {
  test('passes a device that is right', () => {
    const device = new RefDevice();
    for (const kernel of ['add', 'strided_write', 'attention_bwd', 'embedding', 'clip_scale']) {
      for (const c of cases(kernel)) assert.equal(runCase(device, c), null);
    }
    assert.equal(device.memory().liveAllocations, 0);
  });

  const faults: [
    string,
    KernelCase,
    number,
    (values: RefMemory['values'], offset: number, call: KernelCall) => void,
    RegExp,
  ][] = [
    ['a wrong element', big, 0, (v, at) => (v[at + 3] += 1e-3), /1 of \d+ elements wrong: \[3\]/],
    ['a NaN', big, 0, (v, at) => (v[at + 5] = Number.NaN), /\[5\]/],
    // Within the bound of every element, but systematic: the norm over the tensor shows it.
    [
      'an error too small for one element but everywhere',
      soft,
      0,
      scaled(soft.p[0]!.length, 1 + 8e-6),
      /relative L2 error 8/,
    ],
    ['a write before the tensor', big, 0, (v, at) => (v[at - 1] = 0), /outside the tensor, at element -1/],
    ['a write after the tensor', big, 0, (v, at) => (v[at + big.p[0]!.length] = 0), /outside the tensor/],
    ['a changed input', big, 1, (v, at) => (v[at] += 1), /argument 1: .*an input changed at 0/],
  ];
  for (const [name, testCase, arg, damage, expected] of faults) {
    test(`catches ${name}`, () => {
      assert.match(runCase(new FaultyDevice(arg, damage), testCase) ?? 'nothing', expected);
    });
  }

  test('catches an element that was never written', () => {
    class Lazy extends RefDevice {
      override dispatch(call: KernelCall): void {
        super.dispatch({ ...call, ints: [call.ints[0] - 1] });
      }
    }
    const c = some('relu', ({ p, i }) => i[0] > 20 && !p[0]!.alias && p[0]!.dtype === 'f32');
    assert.match(runCase(new Lazy(), c) ?? 'nothing', /1 of \d+ elements wrong/);
  });

  test('catches a bf16 result that is off by one ulp where exactness is asked', () => {
    const c = some('relu', ({ p, i }) => i[0] > 20 && p[0]!.dtype === 'bf16' && !p[0]!.alias && p[1]!.dtype === 'bf16');
    const nudge = new FaultyDevice(0, scaled(c.i[0], 1 + 2 ** -7));
    assert.match(runCase(nudge, c) ?? 'nothing', /elements wrong/);
  });

  test('catches a gap between strided elements that was overwritten', () => {
    const c = some(
      'strided_write',
      ({ p }) => p[0]!.dtype === 'f32' && p[0]!.length > 2 * p[1]!.length && p[1]!.length > 4,
    );
    const wipe = new FaultyDevice(0, (v, at) => v.fill(0, at, at + c.p[0]!.length));
    assert.match(runCase(wipe, c) ?? 'nothing', /elements wrong/);
  });

  test('catches an index error that is not raised', () => {
    const c = some('embedding', ({ error }) => error !== undefined);
    class Silent extends RefDevice {
      override dispatch(): void {}
    }
    assert.match(runCase(new Silent(), c) ?? 'nothing', /did not raise 'index 5 out of range: limit 5'/);
  });
});
