/** Training tokens/s of the 5.8M-parameter decoder (d 256, 6 layers, vocabulary 4096, T 256, B 8) against PyTorch. */
import { openDevice } from '../src/backend/index.ts';
import { createBatch, type TokenBatch } from '../src/data/types.ts';
import { randomStream } from '../src/infer/sampling/index.ts';
import { buildModel } from '../src/model/model.ts';
import { initialise } from '../src/nn/index.ts';
import { accountFor } from '../src/train/account.ts';
import { parseTrainConfig } from '../src/train/config.ts';
import { TrainStep } from '../src/train/step.ts';
import { interleave, type Row } from './harness.ts';
import { noTorch, Torch } from './torch.ts';

/** The same model as the peer's: LayerNorm without bias, GELU, learned positions, tied output. */
export const tinyCpu = parseTrainConfig({
  model: {
    vocab: 4096,
    context: 256,
    width: 256,
    depth: 6,
    attention: { kind: 'full', heads: 4 },
    ffn: { kind: 'mlp', hidden: 1024 },
    norm: { kind: 'layer' },
    positions: 'learned',
  },
  data: { folder: 'none', crossDocuments: true },
  batch: 8,
  steps: 1000,
  optimiser: { kind: 'adamw', lr: 3e-4 },
});

function randomBatch(): TokenBatch {
  const batch = createBatch(8, 256);
  const next = randomStream(1);
  for (let k = 0; k < batch.inputs.length; k++) {
    batch.inputs[k] = Math.floor(next() * 4096);
    batch.targets[k] = Math.floor(next() * 4096);
  }
  batch.targetCount = batch.targets.length;
  return batch;
}

export async function* run(): AsyncIterable<Row> {
  const device = openDevice('cpu');
  const model = buildModel(tinyCpu.model);
  const params = initialise(model, device, 1);
  const step = new TrainStep(device, model, params, tinyCpu, 256);
  const account = accountFor(tinyCpu);
  const batch = randomBatch();
  const tokens = 8 * 256;
  let at = 0;
  const ours = async (): Promise<number> => {
    const start = performance.now();
    for (let k = 0; k < 8; k++) await step.run(at++, [batch]);
    return (8 * tokens * 1000) / (performance.now() - start);
  };
  const torch = await Torch.start();
  const peer = torch && (async () => (await torch.ask({ op: 'train', steps: 5 })).tokens_per_s);
  const r = await interleave(ours, peer, 7);
  torch?.stop();
  const gflops = (r.ours * account.modelFlopsPerToken) / 1e9;
  yield {
    name: 'train-cpu/tiny',
    ...r,
    peerName: torch?.name,
    unit: 'tokens/s',
    parameters: account.parameters,
    modelGflops: gflops,
    ...(torch ? {} : { note: noTorch }),
  };
  yield* breakdown(step);
}

/** Where a step's time goes, by kernel (matrix products by shape): best of several profiled replays. */
async function* breakdown(step: TrainStep): AsyncIterable<Row> {
  const [{ program }] = step.programs;
  const best = new Float64Array(program.calls.length).fill(Infinity);
  for (let k = 0; k < 10; k++) {
    const ns = await program.profile();
    for (let j = 0; j < best.length; j++) best[j] = Math.min(best[j], ns[j]);
  }
  const groups = new Map<string, { ns: number; calls: number; flops: number; bytes: number }>();
  program.calls.forEach((call, k) => {
    const [, m, n, depth, tA, tB] = call.ints;
    const name =
      call.kernel === 'matmul' ? `matmul ${m}x${n}x${depth}${tA ? ' tA' : ''}${tB ? ' tB' : ''}` : call.kernel;
    const g = groups.get(name) ?? { ns: 0, calls: 0, flops: 0, bytes: 0 };
    g.ns += best[k];
    g.calls++;
    g.flops += call.cost?.flops ?? 0;
    g.bytes += call.cost?.bytes ?? 0;
    groups.set(name, g);
  });
  const total = [...groups.values()].reduce((n, g) => n + g.ns, 0);
  for (const [name, g] of [...groups].sort((a, b) => b[1].ns - a[1].ns))
    yield {
      name: `train-cpu/op/${name}`,
      ours: g.ns / 1e6,
      peer: null,
      ratio: null,
      unit: 'ms',
      calls: g.calls,
      share: g.ns / total,
      gflops: g.flops / g.ns,
      gbps: g.bytes / g.ns,
    };
  yield { name: 'train-cpu/op/total', ours: total / 1e6, peer: null, ratio: null, unit: 'ms' };
}
