// One attention or feed-forward layer by itself, and causality of whole models.
import assert from 'node:assert/strict';
import type { Device } from '../../src/backend/device.ts';
import { buildModel } from '../../src/model/model.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import {
  buildParametrisation,
  buildSlot,
  forwardContext,
  initialise,
  type Mixer,
  type ParamTree,
  slotSchema,
} from '../../src/nn/index.ts';
import { noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import '../../src/tricks/index.ts';
import { Rng } from './kernel-cases/build.ts';
import { valuesOf } from './ref-values.ts';
import { batchOn, hostBatch, perturbedParams } from './small-models.ts';

export interface SlotLayer {
  readonly mixer: Mixer;
  /** As initialised. */
  readonly params: ParamTree;
}

export function slotLayer(
  device: Device,
  slot: 'attention' | 'ffn',
  config: Record<string, unknown>,
  o: { width: number; depth?: number; seed?: number },
): SlotLayer {
  const { width, depth = 1, seed = 1 } = o;
  const { scales } = buildParametrisation({ kind: 'standard' }, { width, depth, headWidth: width });
  const mixer = buildSlot(slot, slotSchema(slot).parse(config), {
    dims: { width, depth, vocab: 16, context: 64, tied: true },
    ...{ positions: {}, headWidth: width, layer: 0, scales, zLoss: 0 },
  });
  return { mixer, params: initialise(mixer, device, seed) };
}

export const normalTensor = (device: Device, seed: string, shape: readonly number[], scale = 1): Tensor => {
  const rng = new Rng(seed);
  const n = shape.reduce((a, b) => a * b, 1);
  return Tensor.from(
    device,
    Float64Array.from({ length: n }, () => Math.fround(scale * rng.normal())),
    shape,
  );
};

/**
 * Changing the token at t changes no logit before t, and some logit at t; with two documents in a row, nothing in the
 * first reaches the second.
 */
export function checkCausality(device: Device, spec: ModelSpecInput): void {
  const [batch, length] = [2, 9];
  const model = buildModel(spec);
  const params = perturbedParams(model, device);
  model.prepare(device);
  const { vocab } = model.spec;
  const logits = (change: number | null): Float64Array =>
    scope(() =>
      noGrad(() => {
        const host = hostBatch('causality', vocab, batch, length, true);
        if (change !== null) host.inputs[change] = (host.inputs[change] + 1) % vocab;
        const c = forwardContext({ device, compute: 'f32' });
        return Float64Array.from(
          valuesOf(model.logits(params, model.hidden(params, batchOn(device, host, batch, length), c), c)),
        );
      }),
    );
  const border = Math.ceil(length / 3);
  const base = logits(null);
  for (let t = 0; t < length; t++) {
    const moved = logits(t);
    const changed = (at: number): boolean => {
      for (let v = 0; v < vocab; v++) if (moved[at * vocab + v] !== base[at * vocab + v]) return true;
      return false;
    };
    for (let at = 0; at < batch * length; at++) {
      const reachable = at >= t && at < length && (t >= border || at < border);
      if (!reachable) assert.ok(!changed(at), `token ${t} changes the logits of ${at}`);
    }
    assert.ok(changed(t), `token ${t} does not change its own logits`);
  }
}
