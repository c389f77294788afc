/**
 * Attention slots against full attention at long contexts: time and memory of forward and backward of one whole slot
 * (projections included) in bf16. Both take turns in the same process.
 */
import type { Device } from '../src/backend/device.ts';
import { sizeOf } from '../src/backend/dtype.ts';
import { openDevice } from '../src/backend/index.ts';
import { buildParametrisation, buildSlot, disposeTree, flatten, forwardContext, initialise } from '../src/nn/index.ts';
import { kindsOf, slotSchema } from '../src/nn/slots.ts';
import { type Captured, capture, gradients, normal, RandomState, type Tensor } from '../src/tensor/index.ts';
import '../src/tricks/index.ts';
import { interleave, type Row } from './harness.ts';

const WIDTH = 256;
const HEADS = 4;
const DEPTH = 8;
const LENGTHS = [1024, 2048, 4096, 8192, 16384, 32768];

interface Choice {
  readonly options?: Record<string, unknown>;
  readonly positions?: string;
}

/** How a kind is measured where its defaults with HEADS heads and rotary positions will not do; null: it is not. */
const choices: Record<string, Choice | null> = {
  full: null, // the peer
  blockwise: null, // for evaluation of trained models
  'block-sparse': { options: { heads: HEADS, kvHeads: 1 } },
  // Layer 0 of a period is local, or a convolution: what most layers of such a model are.
  window: { options: { heads: HEADS, window: 1024 } },
  'gated-conv': { options: { heads: HEADS }, positions: 'none' },
  hyena: { options: {}, positions: 'none' },
};

interface Runner {
  /** Seconds of one forward and backward pass. */
  once(): Promise<number>;
  /** Of the captured step: its arena, and the tensors that it returns. Kernels' scratch memory, fixed a thread, is not in it. */
  readonly bytes: number;
  free(): void;
}

function slot(
  device: Device,
  kind: string,
  T: number,
  { options = { heads: HEADS }, positions = 'rope' }: Choice,
): Runner {
  const headWidth = WIDTH / HEADS;
  const { scales } = buildParametrisation({ kind: 'standard' }, { width: WIDTH, depth: DEPTH, headWidth });
  const dims = { width: WIDTH, depth: DEPTH, vocab: 4096, context: T, tied: true };
  const shared = { dims, headWidth, heads: HEADS, layer: 0, scales, zLoss: 0 };
  const turn = buildSlot('positions', slotSchema('positions').parse(positions), { ...shared, positions: {} });
  const config = slotSchema('attention').parse({ kind, ...options });
  const mixer = buildSlot('attention', config, { ...shared, positions: turn });
  const params = initialise(mixer, device, 1);
  const random = new RandomState(device, 1);
  const shape = [1, T, WIDTH];
  const x = normal(random, shape, 1, 0, 1, 'bf16').parameter();
  const residual = normal(random, shape, 2).keep();
  const dy = normal(random, shape, 3).keep();
  const trained = flatten(params).flatMap(({ tensor }) => (tensor.requiresGrad ? [tensor] : []));
  turn.prepare?.(device);
  const step: Captured<Tensor[]> = capture(device, () => {
    const c = forwardContext({ device, compute: 'bf16', training: true, random });
    return gradients(mixer.forward(params, x, residual, c), [x, ...trained], dy);
  });
  const outputs = step.result.reduce((n, t) => n + t.size * sizeOf(t.dtype), 0);
  return {
    bytes: step.program.arenaBytes + outputs,
    once: async () => (await step.program.profile()).reduce((a, b) => a + b, 0) / 1e9,
    free: () => {
      step.dispose();
      disposeTree(params);
      for (const t of [x, residual, dy, random.tensor, ...step.result]) t.dispose();
    },
  };
}

/** Least seconds of passes over a short while, of one pass where that takes longer. */
async function best(runner: Runner, seconds = 0.15): Promise<number> {
  let least = Infinity;
  for (const end = performance.now() + seconds * 1000; least === Infinity || performance.now() < end; )
    least = Math.min(least, await runner.once());
  return least;
}

async function compare(kind: string, T: number, ours: Runner, full: Runner): Promise<Row> {
  const rate = (runner: Runner) => async () => 1 / (await best(runner));
  // Capturing was the first pass, so long ones need no other warm-up.
  const r = await interleave(rate(ours), rate(full), T > 16384 ? 2 : T > 8192 ? 3 : 5, T <= 8192);
  return {
    name: `attention/${kind}/T${T}`,
    ours: 1000 / r.ours,
    peer: 1000 / r.peer!,
    peerName: 'full attention',
    ratio: r.ratio,
    spread: r.spread,
    unit: 'ms',
    lowerIsBetter: true,
    bytes: ours.bytes,
    peerBytes: full.bytes,
    memoryRatio: full.bytes / ours.bytes,
  };
}

export async function* run(): AsyncIterable<Row> {
  const device = openDevice('cpu');
  const kinds = kindsOf('attention').map(({ kind }) => kind);
  for (const T of LENGTHS) {
    const full = slot(device, 'full', T, {});
    for (const kind of kinds) {
      const choice = kind in choices ? choices[kind] : {};
      if (!choice) continue;
      const ours = slot(device, kind, T, choice);
      yield await compare(kind, T, ours, full);
      ours.free();
    }
    full.free();
  }
}
