// Small decoders, batches and training steps for model-level tests.
import type { Device } from '../../src/backend/device.ts';
import { createBatch, type TokenBatch } from '../../src/data/types.ts';
import { type Batch, buildModel, type Model } from '../../src/model/model.ts';
import type { ModelSpec, ModelSpecInput } from '../../src/model/spec.ts';
import { flatten, forwardContext, initialise, type ParamTree } from '../../src/nn/index.ts';
import { type Compute, gradients, Tensor } from '../../src/tensor/index.ts';
import { Rng } from './kernel-cases/build.ts';

export type SpecChanges = Partial<ModelSpecInput>;

/** A decoder that runs in milliseconds. */
export const smallSpec = (changes: SpecChanges = {}): ModelSpecInput => ({
  vocab: 11,
  context: 16,
  width: 12,
  depth: 2,
  attention: { kind: 'full', heads: 2 },
  ffn: { kind: 'glu', hidden: 10 },
  ...changes,
});

export interface HostBatch {
  readonly inputs: Int32Array;
  readonly targets: Int32Array;
  readonly segments: Int32Array | null;
  readonly positions: Int32Array | null;
  readonly weights: Float32Array;
}

/** Random tokens; some targets do not count. With `segmented`, two documents a row. */
export function hostBatch(seed: string, vocab: number, batch: number, length: number, segmented = false): HostBatch {
  const rng = new Rng(seed);
  const n = batch * length;
  const inputs = Int32Array.from({ length: n }, () => rng.int(0, vocab - 1));
  const targets = Int32Array.from({ length: n }, () => (rng.chance(0.2) ? -1 : rng.int(0, vocab - 1)));
  const counted = targets.reduce((c, t) => c + +(t >= 0), 0);
  const border = Math.ceil(length / 3);
  const second = (k: number): boolean => k % length >= border;
  return {
    inputs,
    targets,
    segments: segmented ? Int32Array.from({ length: n }, (_, k) => (second(k) ? 2 : 1)) : null,
    positions: segmented ? Int32Array.from({ length: n }, (_, k) => (k % length) - (second(k) ? border : 0)) : null,
    weights: new Float32Array(n).fill(1 / Math.max(1, counted)),
  };
}

export function batchOn(device: Device, host: HostBatch, batch: number, length: number): Batch {
  const ids = (x: Int32Array): Tensor => Tensor.from(device, x, [batch, length], 'i32');
  return {
    inputs: ids(host.inputs),
    targets: ids(host.targets),
    segments: host.segments && ids(host.segments),
    positions: host.positions && ids(host.positions),
    weights: Tensor.from(device, host.weights, [batch, length]),
  };
}

/** Parameters whose values do not depend on the device, none of them at a special value such as 1 or 0. */
export function perturbedParams(model: Model, device: Device, seed = 'parameters'): ParamTree {
  const params = initialise(model, device, 1);
  for (const { path, tensor } of flatten(params)) {
    const rng = new Rng(`${seed} ${path}`);
    const matrix = tensor.rank > 1;
    const scale = matrix ? 0.5 / Math.sqrt(tensor.shape[1]) : 0.2;
    const centre = matrix || /bias/i.test(path) ? 0 : 1;
    tensor.write(Float64Array.from({ length: tensor.size }, () => centre + scale * rng.normal()));
  }
  return params;
}

export interface Step {
  readonly model: Model;
  readonly params: ParamTree;
  readonly names: string[];
  readonly batch: Batch;
  /** Forward and backward: the loss, and the gradients in the order of `names`. */
  run(): { loss: Tensor; grads: Tensor[] };
}

export function stepOn(
  device: Device,
  spec: ModelSpecInput,
  options: { batch: number; length: number; segmented?: boolean; compute?: Compute; seed?: string },
): Step {
  const { batch, length, segmented, compute = 'f32', seed = 'batch' } = options;
  const model = buildModel(spec);
  const params = perturbedParams(model, device);
  const tensors = flatten(params).filter((t) => t.tensor.requiresGrad);
  const onDevice = batchOn(device, hostBatch(seed, spec.vocab, batch, length, segmented), batch, length);
  model.prepare(device);
  return {
    model,
    params,
    names: tensors.map((t) => t.path),
    batch: onDevice,
    run: () => {
      const { total } = model.loss(params, onDevice, forwardContext({ device, compute }));
      return {
        loss: total,
        grads: gradients(
          total,
          tensors.map((t) => t.tensor),
        ),
      };
    },
  };
}

/** A run configuration around a model; the data folder is never opened. */
export const configOf = (model: ModelSpecInput, changes: Record<string, unknown> = {}): Record<string, unknown> => ({
  model,
  data: { folder: 'unused', crossDocuments: true },
  precision: 'f32',
  batch: 2,
  steps: 100,
  ...changes,
});

/** Decoders that differ in every slot. */
export const decoderVariants: Readonly<Record<string, ModelSpecInput>> = {
  'glu, rms, rope, tied': smallSpec(),
  'mlp, layer, learned, untied': smallSpec({
    ffn: { kind: 'mlp', hidden: 20, activation: 'gelu' },
    norm: { kind: 'layer', bias: true },
    positions: 'learned',
    tied: false,
  }),
  'grouped heads, window, biases': smallSpec({
    attention: { kind: 'full', heads: 4, kvHeads: 2, headWidth: 4, window: 3, bias: true },
    ffn: { kind: 'glu', hidden: 7, bias: true, activation: 'gelu' },
    positions: { kind: 'rope', fraction: 0.5, interleaved: true },
  }),
  'no positions, bare norms, z-loss': smallSpec({
    attention: { kind: 'full', heads: 3, kvHeads: 1 },
    ffn: { kind: 'mlp', hidden: 9, activation: 'relu2' },
    norm: { kind: 'layer', scale: false },
    positions: 'none',
    zLoss: 0.01,
  }),
};

export interface DecoderFacts {
  readonly parameters: number;
  /** Forward FLOPs a token: of the layers' matrices, of the output matrix, of both, and of attention. */
  readonly layerFlops: number;
  readonly headFlops: number;
  readonly matrixFlops: number;
  readonly attentionFlops: number;
}

/** Sizes of a dense decoder in closed form, from the spec alone: what the engine's accounting is tested against. */
export function decoderFacts(spec: ModelSpec, length: number): DecoderFacts {
  const { width: d, depth: L, vocab: V } = spec;
  const a = spec.attention as unknown as {
    heads: number;
    kvHeads?: number;
    headWidth?: number;
    window: number;
    bias: boolean;
  };
  const f = spec.ffn as unknown as { kind: string; hidden: number; bias: boolean };
  const n = spec.norm as unknown as { kind: string; scale: boolean; bias?: boolean };
  const c = a.headWidth ?? d / a.heads;
  const packed = (a.heads + 2 * (a.kvHeads ?? a.heads)) * c;
  const inner = f.kind === 'glu' ? 2 * f.hidden : f.hidden;
  const norm = d * (+n.scale + +(n.bias ?? false));
  const matrices = d * packed + a.heads * c * d + d * inner + f.hidden * d;
  const biases = (a.bias ? packed + d : 0) + (f.bias ? inner + d : 0);
  const learned = spec.positions.kind === 'learned' ? spec.context * d : 0;
  const parameters = V * d * (spec.tied ? 1 : 2) + learned + L * (matrices + biases + 2 * norm) + norm;
  // Token t sees min(t + 1, window) keys; a key costs a dot product and a weighted sum in every head.
  let keys = 0;
  for (let t = 0; t < length; t++) keys += a.window ? Math.min(t + 1, a.window) : t + 1;
  const [layerFlops, headFlops] = [2 * L * matrices, 2 * d * V];
  const attentionFlops = (4 * L * a.heads * c * keys) / length;
  return { parameters, layerFlops, headFlops, matrixFlops: layerFlops + headFlops, attentionFlops };
}

/** A batch as the loader makes it, of random tokens with two documents a row. */
export function tokenBatch(seed: string, vocab: number, rows: number, length: number): TokenBatch {
  const host = hostBatch(seed, vocab, rows, length, true);
  const batch = createBatch(rows, length);
  batch.inputs.set(host.inputs);
  batch.targets.set(host.targets);
  batch.segments.set(host.segments!);
  batch.positions.set(host.positions!);
  batch.targetCount = host.targets.reduce((n, t) => n + +(t >= 0), 0);
  return batch;
}

/** The rows of two batches in one. */
export function joined(a: TokenBatch, b: TokenBatch): TokenBatch {
  const out = createBatch(a.batch + b.batch, a.length);
  for (const field of ['inputs', 'targets', 'segments', 'positions'] as const) {
    out[field].set(a[field]);
    out[field].set(b[field], a[field].length);
  }
  out.targetCount = a.targetCount + b.targetCount;
  return out;
}
