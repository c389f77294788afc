// A mixture-of-experts layer by itself, with parameters and inputs that do not depend on the device.
import type { Device } from '../../src/backend/device.ts';
import {
  buildParametrisation,
  buildSlot,
  type ForwardContext,
  flatten,
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

export interface Layer {
  readonly mixer: Mixer;
  readonly params: ParamTree;
  readonly width: number;
}

/** The layer of a slot config; matrices are drawn anew so that routing is far from even, state starts at 0. */
export function moeLayer(
  device: Device,
  ffn: Record<string, unknown>,
  o: { width?: number; depth?: number; causal?: boolean; seed?: string; routerScale?: number } = {},
): Layer {
  const { width = 8, depth = 1, causal = true, seed = 'layer', routerScale = 1 } = o;
  const { scales } = buildParametrisation({ kind: 'standard' }, { width, depth, headWidth: width });
  const dims = { width, depth, vocab: 16, context: 64, tied: true };
  const config = slotSchema('ffn').parse(ffn);
  const mixer = buildSlot('ffn', config, {
    ...{ dims, positions: {}, headWidth: width, layer: 0, scales, zLoss: 0, causal },
  });
  const params = initialise(mixer, device, 1);
  for (const { path, tensor } of flatten(params)) {
    const rng = new Rng(`${seed} ${path}`);
    const scale = path === 'router' ? routerScale / Math.sqrt(width) : 1 / Math.sqrt(width);
    if (tensor.rank > 1) tensor.write(Float64Array.from({ length: tensor.size }, () => scale * rng.normal()));
  }
  return { mixer, params, width };
}

/** Normal values that every dtype but bf16 holds exactly. */
export const normals = (seed: string, n: number): Float64Array => {
  const rng = new Rng(seed);
  return Float64Array.from({ length: n }, () => Math.fround(rng.normal()));
};

/** What the layer adds to a residual of zeros: [B T][d]. */
export function outputOf(
  layer: Layer,
  device: Device,
  x: ArrayLike<number>,
  shape: readonly [number, number],
  changes: Partial<ForwardContext> = {},
): number[][] {
  const [B, T] = shape;
  const d = layer.width;
  const flat = scope(() =>
    noGrad(() => {
      const c = forwardContext({ device, compute: 'f32', ...changes });
      const input = Tensor.from(device, x, [B, T, d], c.activation);
      const residual = Tensor.from(device, new Float64Array(B * T * d), [B, T, d]);
      return Array.from(valuesOf(layer.mixer.forward(layer.params, input, residual, c)));
    }),
  );
  return Array.from({ length: B * T }, (_, t) => flat.slice(t * d, (t + 1) * d));
}

/** Values of a parameter by path. */
export function paramValues(layer: Layer, path: string): number[] {
  const found = flatten(layer.params).find((p) => p.path === path);
  if (!found) throw new Error(`no parameter ${path}`);
  return Array.from(valuesOf(found.tensor));
}
