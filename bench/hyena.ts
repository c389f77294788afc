/**
 * Hyena and gated-convolution layers against full causal attention of the same width, projections included, forward and
 * backward: one row of T tokens, width 256, heads of 64. Rates are steps a second; memory is that of a step's arena.
 */
import { CpuDevice } from '../src/backend/cpu/device.ts';
import {
  buildParametrisation,
  buildSlot,
  disposeTree,
  forwardContext,
  initialise,
  type ParamTree,
  slotSchema,
} from '../src/nn/index.ts';
import { type Captured, capture, gradients, normal, ones, RandomState, scope, Tensor } from '../src/tensor/index.ts';
import '../src/tricks/index.ts';
import { interleave, type Row } from './harness.ts';

const [WIDTH, HEAD] = [256, 64];
const LENGTHS = [256, 512, 1024, 4096, 16384];

interface Layer {
  readonly step: Captured<unknown>;
  readonly params: ParamTree;
}

function layer(device: CpuDevice, config: object, x: Tensor, seed: Tensor): Layer {
  const context = x.shape[1];
  const { scales } = buildParametrisation({ kind: 'standard' }, { width: WIDTH, depth: 1, headWidth: HEAD });
  const mixer = buildSlot('attention', slotSchema('attention').parse(config), {
    dims: { width: WIDTH, depth: 1, vocab: 1, context, tied: true },
    ...{ positions: {}, headWidth: HEAD, layer: 0, scales, zLoss: 0 },
  });
  const params = initialise(mixer, device, 1);
  const wanted = [x, ...Object.values(params).filter((t): t is Tensor => t instanceof Tensor)];
  const step = capture(device, () => {
    const c = forwardContext({ device, compute: 'bf16', training: true });
    return gradients(mixer.forward(params, x, seed, c), wanted, seed);
  });
  return { step, params };
}

async function rate({ step }: Layer): Promise<number> {
  const start = performance.now();
  let runs = 0;
  do {
    await step.run();
    runs++;
  } while (performance.now() - start < 100);
  return (1000 * runs) / (performance.now() - start);
}

export async function* run(): AsyncIterable<Row> {
  const device = new CpuDevice();
  const random = new RandomState(device, 5);
  for (const t of LENGTHS) {
    const x = scope(() => normal(random, [1, t, WIDTH], 0, 0, 1, 'bf16').parameter());
    const seed = scope(() => ones(device, [1, t, WIDTH]));
    const full = layer(device, { kind: 'full', heads: WIDTH / HEAD }, x, seed);
    for (const config of [{ kind: 'hyena' }, { kind: 'gated-conv', period: 0 }]) {
      const other = layer(device, config, x, seed);
      const r = await interleave(
        () => rate(other),
        () => rate(full),
        t > 8192 ? 3 : 7,
      );
      const name = `${config.kind} layer, forward + backward, T ${t}`;
      yield { name, unit: 'steps/s', peerName: 'full', ...r };
      const [ours, peer] = [other, full].map((l) => l.step.program.arenaBytes / 2 ** 20);
      yield {
        name: `${config.kind} layer, memory, T ${t}`,
        unit: 'MiB',
        peerName: 'full',
        ours,
        peer,
        ratio: peer / ours,
      };
      other.step.dispose();
      disposeTree(other.params);
    }
    full.step.dispose();
    disposeTree(full.params);
    for (const tensor of [x, seed]) tensor.dispose();
  }
}
