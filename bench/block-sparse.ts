/**
 * Windowed and block-sparse attention layers against full causal attention with the same heads, projections included,
 * forward and backward: one row of T random tokens, width 512, 8 query heads of 64 on 2 key heads, bf16, published sizes.
 * Times are sums over the step's kernels of the shortest of several runs each; memory is that of a step's arena.
 */
import type { Device } from '../src/backend/device.ts';
import { openDevice } from '../src/backend/index.ts';
import { buildParametrisation, buildSlot, disposeTree, flatten, forwardContext, initialise } from '../src/nn/index.ts';
import { slotSchema } from '../src/nn/slots.ts';
import { type Captured, capture, gradients, normal, RandomState, scope } from '../src/tensor/index.ts';
import '../src/tricks/index.ts';
import type { Row } from './harness.ts';

const [WIDTH, HEAD, HEADS, KV_HEADS] = [512, 64, 8, 2];
const LENGTHS = [1024, 2048, 4096, 8192, 16384, 32768];
const shared = { heads: HEADS, kvHeads: KV_HEADS };
const kinds = {
  full: { kind: 'full', ...shared },
  window: { kind: 'window', ...shared, window: 512, period: 0 },
  'block-sparse': { kind: 'block-sparse', ...shared },
};

function stepOf(device: Device, config: object, t: number): { step: Captured<unknown>; free(): void } {
  const { scales } = buildParametrisation({ kind: 'standard' }, { width: WIDTH, depth: 1, headWidth: HEAD });
  const mixer = buildSlot('attention', slotSchema('attention').parse(config), {
    dims: { width: WIDTH, depth: 1, vocab: 1, context: t, tied: true },
    ...{ positions: {}, headWidth: HEAD, layer: 0, scales, zLoss: 0 },
  });
  const params = initialise(mixer, device, 1);
  const random = new RandomState(device, 1);
  const draw = (stream: number, dtype: 'f32' | 'bf16') =>
    scope(() => normal(random, [1, t, WIDTH], stream, 0, 1, dtype).parameter());
  const [x, residual, seed] = [draw(1, 'bf16'), draw(2, 'f32'), draw(3, 'f32')];
  const wanted = [x, ...flatten(params).map((p) => p.tensor)];
  const step = capture(device, () => {
    const c = forwardContext({ device, compute: 'bf16', training: true });
    return gradients(mixer.forward(params, x, residual, c), wanted, seed);
  });
  const free = (): void => {
    step.dispose();
    disposeTree(params);
    for (const tensor of [x, residual, seed, random.tensor]) tensor.dispose();
  };
  return { step, free };
}

/** Shortest time of every kernel of a step so far, in nanoseconds. */
async function shortest(step: Captured<unknown>, before: number[] | null): Promise<number[]> {
  const times = Array.from(await step.program.profile());
  return before ? times.map((ns, k) => Math.min(ns, before[k])) : times;
}

export async function* run(): AsyncIterable<Row> {
  const device = openDevice('cpu');
  for (const t of LENGTHS) {
    const steps = Object.values(kinds).map((config) => ({
      ...stepOf(device, config, t),
      best: null as number[] | null,
    }));
    // The kinds take turns, so that a machine that slows down slows all of them.
    for (let k = 0; k < (t > 8192 ? 4 : t > 2048 ? 12 : 40); k++)
      for (const s of steps) s.best = await shortest(s.step, s.best);
    const [full, ...others] = steps.map((s) => ({
      seconds: s.best!.reduce((a, b) => a + b, 0) / 1e9,
      bytes: s.step.program.arenaBytes,
    }));
    for (const [k, name] of ['window', 'block-sparse'].entries()) {
      const { seconds, bytes } = others[k];
      yield {
        name: `${name} forward + backward, T ${t}`,
        ...{ ours: 1 / seconds, peer: 1 / full.seconds, peerName: 'full', ratio: full.seconds / seconds },
        ...{ unit: 'steps/s', bytes, memoryRatio: bytes / full.bytes },
      };
    }
    for (const s of steps) s.free();
  }
}
