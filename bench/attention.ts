/**
 * Attention slots against full attention at long contexts: time and memory of forward and backward of one whole slot
 * (projections included), one row. Both take turns in the same process.
 *
 * ANSATZ_BENCH_ONLY takes kinds (lsh, hyena, ...), lengths (T4096) and sizes: `narrow` (by default: width 256, 4 heads of
 * 64, where key heads are shared 1) and `wide` (width 512, 8 heads of 64 on 2 key heads, windows of 512); `f32` instead of
 * bf16.
 */
import type { Device } from '../src/backend/device.ts';
import { sizeOf } from '../src/backend/dtype.ts';
import { openDevice } from '../src/backend/index.ts';
import { buildParametrisation, buildSlot, disposeTree, flatten, forwardContext, initialise } from '../src/nn/index.ts';
import { kindsOf, slotSchema } from '../src/nn/slots.ts';
import {
  type Captured,
  type Compute,
  capture,
  gradients,
  normal,
  RandomState,
  type Tensor,
} from '../src/tensor/index.ts';
import '../src/tricks/index.ts';
import { interleave, type Row } from './harness.ts';

const DEPTH = 8;
const HEAD = 64;
const LENGTHS = [256, 512, 1024, 2048, 4096, 8192, 16384, 32768];

interface Choice {
  readonly options?: Record<string, unknown>;
  readonly positions?: string;
}

interface Size {
  readonly name: string;
  readonly width: number;
  readonly full: Choice;
  /** How a kind is measured where its defaults with all heads and rotary positions will not do; null: it is not. */
  readonly choices: Readonly<Record<string, Choice | null>>;
}

// Layer 0 of a period is local, or a convolution: what most layers of such a model are.
const usual = (heads: number): Size['choices'] => ({
  full: null, // the peer
  blockwise: null, // for evaluation of trained models
  'gated-conv': { options: { heads }, positions: 'none' },
  hyena: { options: {}, positions: 'none' },
});

const SIZES: readonly Size[] = [
  {
    ...{ name: 'narrow', width: 256, full: {} },
    choices: {
      ...usual(4),
      'block-sparse': { options: { heads: 4, kvHeads: 1 } },
      window: { options: { heads: 4, window: 1024 } },
    },
  },
  {
    ...{ name: 'wide', width: 512, full: { options: { heads: 8, kvHeads: 2 } } },
    choices: {
      ...usual(8),
      'block-sparse': { options: { heads: 8, kvHeads: 2 } },
      window: { options: { heads: 8, kvHeads: 2, window: 512 } },
    },
  },
];

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
  width: number,
  compute: Compute,
  { options = { heads: width / HEAD }, positions = 'rope' }: Choice,
): Runner {
  const { scales } = buildParametrisation({ kind: 'standard' }, { width, depth: DEPTH, headWidth: HEAD });
  const dims = { width, depth: DEPTH, vocab: 4096, context: T, tied: true };
  const shared = { dims, headWidth: HEAD, heads: width / HEAD, layer: 0, scales, zLoss: 0 };
  const turn = buildSlot('positions', slotSchema('positions').parse(positions), { ...shared, positions: {} });
  const config = slotSchema('attention').parse({ kind, ...options });
  const mixer = buildSlot('attention', config, { ...shared, positions: turn });
  const params = initialise(mixer, device, 1);
  const random = new RandomState(device, 1);
  const shape = [1, T, width];
  const x = normal(random, shape, 1, 0, 1, compute).parameter();
  const residual = normal(random, shape, 2).keep();
  const dy = normal(random, shape, 3).keep();
  const trained = flatten(params).flatMap(({ tensor }) => (tensor.requiresGrad ? [tensor] : []));
  turn.prepare?.(device);
  const step: Captured<Tensor[]> = capture(device, () => {
    const c = forwardContext({ device, compute, training: true, random });
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

async function compare(name: string, T: number, ours: Runner, full: Runner): Promise<Row> {
  const rate = (runner: Runner) => async () => 1 / (await best(runner));
  // Capturing was the first pass, so long ones need no other warm-up.
  const r = await interleave(rate(ours), rate(full), T > 16384 ? 2 : T > 8192 ? 3 : 5, T <= 8192);
  return {
    name: `attention/${name}/T${T}`,
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
  const only = process.env.ANSATZ_BENCH_ONLY?.split(',') ?? [];
  const kinds = kindsOf('attention').map(({ kind }) => kind);
  /** Those of a sort that are named; all when none is. */
  const wanted = <T>(sort: readonly T[], name: (x: T) => string): readonly T[] => {
    const named = sort.filter((x) => only.includes(name(x)));
    return named.length > 0 ? named : sort;
  };
  const compute: Compute = only.includes('f32') ? 'f32' : 'bf16';
  const sizes = only.includes('wide') ? wanted(SIZES, (s) => s.name) : SIZES.slice(0, 1);
  for (const { name, width, full: peer, choices } of sizes)
    for (const T of wanted(LENGTHS, (t) => `T${t}`)) {
      const full = slot(device, 'full', T, width, compute, peer);
      for (const kind of wanted(kinds, (k) => k)) {
        const choice = kind in choices ? choices[kind] : {};
        if (!choice) continue;
        const ours = slot(device, kind, T, width, compute, choice);
        const prefix = [...(name === 'narrow' ? [] : [name]), ...(compute === 'f32' ? ['f32'] : []), kind];
        yield await compare(prefix.join('/'), T, ours, full);
        ours.free();
      }
      full.free();
    }
}
