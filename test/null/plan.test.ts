// The arena of a captured step: temporaries that live at the same time never share a byte.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { memoryId } from '../../src/backend/accounting.ts';
import type { KernelCall, Memory } from '../../src/backend/device.ts';
import { MetaDevice } from '../../src/backend/meta/device.ts';
import { planArena } from '../../src/backend/plan.ts';
import { capture } from '../../src/tensor/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { smallSpec, stepOn } from '../support/small-models.ts';

const GRAIN = 256;

const memory = (bytes: number): Memory => ({ id: memoryId(), dtype: 'u8', elements: bytes, bytes });
const call = (...memories: Memory[]): KernelCall => ({
  kernel: 'any',
  args: memories.map((m) => ({ memory: m, offset: 0 })),
  ints: [],
  floats: [],
});

/**
 * Plays a program on the planned arena: the first call that touches a temporary owns its bytes, and every later one
 * must find them still its own.
 */
function play(
  calls: readonly KernelCall[],
  temporaries: ReadonlySet<Memory>,
): { bytes: number; unsharedBytes: number } {
  const plan = planArena(calls, temporaries);
  const owner = new Int32Array(Math.ceil(plan.bytes / GRAIN));
  const begun = new Set<Memory>();
  calls.forEach(({ args }, k) => {
    for (const fresh of [true, false])
      for (const arg of args) {
        if (!arg || !temporaries.has(arg.memory) || begun.has(arg.memory) === fresh) continue;
        const { memory: m } = arg;
        const offset = plan.offsets.get(m)!;
        assert.equal(offset % GRAIN, 0, 'aligned');
        assert.ok(offset >= 0 && offset + m.bytes <= plan.bytes, 'inside the arena');
        for (let at = offset; at < offset + m.bytes; at += GRAIN) {
          if (fresh) owner[at / GRAIN] = m.id;
          else assert.equal(owner[at / GRAIN], m.id, `call ${k} finds its operand overwritten`);
        }
        if (fresh) begun.add(m);
      }
  });
  for (const m of plan.offsets.keys()) assert.ok(temporaries.has(m), 'only temporaries are placed');
  return plan;
}

/** The most bytes that live at one time: no plan can do with less. */
function leastBytes(calls: readonly KernelCall[], temporaries: ReadonlySet<Memory>): number {
  const last = new Map<Memory, number>();
  const first = new Map<Memory, number>();
  calls.forEach(({ args }, k) => {
    for (const arg of args) {
      if (!arg || !temporaries.has(arg.memory)) continue;
      last.set(arg.memory, k);
      if (!first.has(arg.memory)) first.set(arg.memory, k);
    }
  });
  return Math.max(
    0,
    ...calls.map((_, k) =>
      [...first].reduce(
        (n, [m, from]) => n + (from <= k && last.get(m)! >= k ? Math.ceil(m.bytes / GRAIN) * GRAIN : 0),
        0,
      ),
    ),
  );
}

function randomProgram(rng: Rng): { calls: KernelCall[]; temporaries: Set<Memory> } {
  const [outside, temporaries] = [Array.from({ length: 3 }, () => memory(1000)), new Set<Memory>()];
  const known: Memory[] = [...outside];
  const calls: KernelCall[] = [];
  for (let k = rng.int(1, 60); k > 0; k--) {
    const outputs = Array.from({ length: rng.int(1, 2) }, () => {
      const m = memory(rng.pick([0, 1, 255, 256, 257, rng.int(1, 5000), rng.int(1, 50_000)]));
      temporaries.add(m);
      return m;
    });
    // Mostly recent operands, now and then an old one: as backward passes have it.
    const inputs = Array.from({ length: rng.int(0, 3) }, () =>
      rng.chance(0.7) ? known[known.length - 1 - rng.int(0, Math.min(3, known.length - 1))] : rng.pick(known),
    );
    calls.push(call(...outputs, ...inputs));
    known.push(...outputs);
  }
  return { calls, temporaries };
}

describe('planArena', () => {
  test('random programs: no overlap, no more than unshared, no less than what lives', () => {
    const rng = new Rng('arena');
    let [planned, least] = [0, 0];
    for (let k = 0; k < 500; k++) {
      const { calls, temporaries } = randomProgram(rng);
      const plan = play(calls, temporaries);
      const bound = leastBytes(calls, temporaries);
      assert.ok(plan.bytes >= bound, 'less than what lives at once');
      assert.ok(plan.bytes <= plan.unsharedBytes, 'more than without sharing');
      planned += plan.bytes;
      least += bound;
    }
    assert.ok(planned < 1.1 * least, `plans take ${(planned / least).toFixed(3)} of the least possible`);
  });

  test('a chain of equal temporaries takes two places', () => {
    const chain = Array.from({ length: 50 }, () => memory(1000));
    const calls = chain.slice(1).map((m, k) => call(m, chain[k]));
    assert.equal(play(calls, new Set(chain)).bytes, 2 * 1024);
  });

  test('what stays outside takes no place, and nothing is planned from nothing', () => {
    const [a, b] = [memory(100), memory(100)];
    assert.equal(play([call(a, b)], new Set([a])).bytes, 256);
    assert.equal(play([call(a, b)], new Set()).bytes, 0);
    assert.equal(play([], new Set([a])).bytes, 0);
  });

  test('a training step of a decoder', () => {
    const device = new MetaDevice();
    const step = stepOn(device, smallSpec(), { batch: 2, length: 8 });
    let temporaries: ReadonlySet<Memory> = new Set();
    let calls: readonly KernelCall[] = [];
    const compile = device.compile.bind(device);
    device.compile = (recording) => {
      ({ calls, temporaries } = recording);
      return compile(recording);
    };
    const captured = capture(device, step.run);
    const plan = play(calls, temporaries);
    assert.ok(calls.length > 50 && temporaries.size > 50);
    assert.equal(plan.bytes, captured.program.arenaBytes);
    assert.ok(plan.bytes < 0.7 * plan.unsharedBytes, 'memory is shared');
    captured.dispose();
  });
});
