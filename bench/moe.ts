/**
 * Mixtures of experts against dense products and layers of ours that cost the same FLOPs: what grouping, routing and
 * moving rows cost. The peer is our own dense code, in the same process, taking turns.
 */
import type { Device } from '../src/backend/device.ts';
import { openDevice } from '../src/backend/index.ts';
import { buildParametrisation, buildSlot, disposeTree, flatten, forwardContext, initialise } from '../src/nn/index.ts';
import { slotSchema } from '../src/nn/slots.ts';
import {
  type Captured,
  type Compute,
  capture,
  gradients,
  groupedMatmul,
  matmul,
  normal,
  RandomState,
  route,
} from '../src/tensor/index.ts';
import '../src/tricks/index.ts';
import { interleave, type Row } from './harness.ts';

const TOKENS = 2048;
const WIDTH = 512;
const DENSE = 1536;

/** Best seconds of a program over a short while. */
const best = async (step: Captured<unknown>, seconds = 0.25): Promise<number> => {
  let least = Infinity;
  for (const end = performance.now() + seconds * 1000; performance.now() < end; ) {
    const times = await step.program.profile();
    least = Math.min(least, times.reduce((a, b) => a + b, 0) / 1e9);
  }
  return least;
};

interface Runner {
  readonly step: Captured<unknown>;
  /** FLOPs of the products, by the engine's accounting. */
  readonly flops: number;
  free(): void;
}

const productFlops = (step: Captured<unknown>): number =>
  step.program.calls.reduce((n, c) => n + (/matmul/.test(c.kernel) ? (c.cost?.flops ?? 0) : 0), 0);

/** One product with its two gradients. */
function product(device: Device, compute: Compute, N: number, k: number, E: number): Runner {
  const random = new RandomState(device, 1);
  const rows = TOKENS * k;
  const x = normal(random, [rows, WIDTH], 1, 0, 1, compute).parameter();
  const w = normal(random, E === 0 ? [N, WIDTH] : [E, N, WIDTH], 2).parameter();
  const dy = normal(random, [rows, N], 3, 0, 1, compute).keep();
  const routing = E === 0 ? null : route(normal(random, [TOKENS, E], 4), { k, span: TOKENS });
  const step = capture(device, () => {
    const options = { transB: true, compute, out: compute };
    const y = routing ? groupedMatmul(x, w, routing, options) : matmul(x, w, options);
    return gradients(y, [x, w], dy);
  });
  const free = (): void => {
    step.dispose();
    for (const t of [x, w, dy, random.tensor, ...step.result]) t.dispose();
  };
  return { step, flops: productFlops(step), free };
}

/** A feed-forward layer, forward and backward, on 8 sequences. */
function layer(device: Device, compute: Compute, ffn: Record<string, unknown>): Runner {
  const sizes = { width: WIDTH, depth: 8, headWidth: 64 };
  const { scales } = buildParametrisation({ kind: 'standard' }, sizes);
  const dims = { width: WIDTH, depth: 8, vocab: 4096, context: 256, tied: true };
  const config = slotSchema('ffn').parse(ffn);
  const mixer = buildSlot('ffn', config, { dims, positions: {}, headWidth: 64, layer: 0, scales, zLoss: 0 });
  const params = initialise(mixer, device, 1);
  const random = new RandomState(device, 1);
  const shape = [8, TOKENS / 8, WIDTH];
  const x = normal(random, shape, 1, 0, 1, compute).parameter();
  const residual = normal(random, shape, 2).keep();
  const dy = normal(random, shape, 3).keep();
  const trained = flatten(params).flatMap(({ tensor }) => (tensor.requiresGrad ? [tensor] : []));
  const step = capture(device, () => {
    const c = forwardContext({ device, compute, training: true });
    const y = mixer.forward(params, x, residual, c);
    return gradients(y, [x, ...trained], dy);
  });
  const free = (): void => {
    step.dispose();
    disposeTree(params);
    for (const t of [x, residual, dy, random.tensor, ...step.result]) t.dispose();
  };
  return { step, flops: productFlops(step), free };
}

async function compare(name: string, ours: Runner, peer: Runner, peerName: string): Promise<Row> {
  const rate = (r: Runner) => async () => r.flops / (await best(r.step)) / 1e9;
  const r = await interleave(rate(ours), rate(peer), 3);
  ours.free();
  peer.free();
  return { name, ...r, peerName, unit: 'GFLOP/s' };
}

export async function* run(): AsyncIterable<Row> {
  const device = openDevice('cpu');
  for (const compute of ['bf16', 'f32'] as const) {
    for (const [E, k, N] of [
      [8, 1, 2 * DENSE],
      [16, 1, 2 * DENSE],
      [64, 4, DENSE / 2],
    ])
      yield await compare(
        `moe/grouped/${compute}/E${E}/${TOKENS * k}x${N}x${WIDTH}`,
        product(device, compute, N, k, E),
        product(device, compute, N, k, 0),
        'dense product',
      );
    for (const [E, k] of [
      [8, 1],
      [8, 2],
      [16, 1],
      [64, 1],
      [32, 4],
      [64, 4],
    ]) {
      const moe = { kind: 'moe', experts: E, active: k, expert: { kind: 'glu', hidden: DENSE / k } };
      yield await compare(
        `moe/layer/${compute}/E${E}/k${k}`,
        layer(device, compute, moe),
        layer(device, compute, { kind: 'glu', hidden: DENSE }),
        'dense layer',
      );
    }
  }
}
