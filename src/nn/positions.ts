/** Positions slot: rotary, learned, or none. */
import { z } from 'zod';
import type { Device } from '../backend/device.ts';
import { AnsatzError } from '../backend/errors.ts';
import { add, embedding, reshape, rope, slice, Tensor } from '../tensor/index.ts';
import type { ForwardContext } from './context.ts';
import { tensorOf } from './module.ts';
import { registerSlot } from './slots.ts';

/** cos and sin of position / theta^(2k/R), f32 [positions, R/2] each (Su et al. 2021). */
export function rotaryTables(
  positions: number,
  rotated: number,
  theta: number,
): { cos: Float32Array; sin: Float32Array } {
  const half = rotated / 2;
  const cos = new Float32Array(positions * half);
  const sin = new Float32Array(positions * half);
  for (let t = 0; t < positions; t++)
    for (let k = 0; k < half; k++) {
      const angle = t / theta ** (k / half);
      cos[t * half + k] = Math.cos(angle);
      sin[t * half + k] = Math.sin(angle);
    }
  return { cos, sin };
}

registerSlot({
  slot: 'positions',
  kind: 'rope',
  summary: 'rotary positions: queries and keys turn by an angle proportional to position',
  options: z.strictObject({
    theta: z.number().positive().default(10000),
    /** Share of each head that is turned. */
    fraction: z.number().positive().max(1).default(1),
    interleaved: z.boolean().default(false),
  }),
  build: ({ theta, fraction, interleaved }, { dims, headWidth }) => {
    const rotated = 2 * Math.floor((headWidth * fraction) / 2);
    if (rotated < 2) throw new AnsatzError(`positions rope: a head of ${headWidth} has no pair to turn`);
    if (fraction === 1 && rotated !== headWidth)
      throw new AnsatzError(`positions rope: a head of ${headWidth} does not split into pairs`, {
        hint: 'use an even head width, or turn a part of it: positions.fraction below 1',
      });
    // Tables are constants of a device: made before any step is captured, on first use.
    const tables = new Map<Device, { cos: Tensor; sin: Tensor }>();
    const on = (device: Device): { cos: Tensor; sin: Tensor } => {
      let t = tables.get(device);
      if (!t) {
        const { cos, sin } = rotaryTables(dims.context, rotated, theta);
        const shape = [dims.context, rotated / 2];
        t = { cos: Tensor.from(device, cos, shape).keep(), sin: Tensor.from(device, sin, shape).keep() };
        tables.set(device, t);
      }
      return t;
    };
    return {
      prepare: (device) => void on(device),
      rotate: (qkv, heads, kvHeads, c) => {
        const { cos, sin } = on(c.device);
        return rope(qkv, cos, sin, { rotated: heads + kvHeads, interleaved, positions: c.positions });
      },
    };
  },
});

registerSlot({
  slot: 'positions',
  kind: 'learned',
  summary: 'a learned vector a position, added to the embeddings',
  options: z.strictObject({ std: z.number().positive().default(0.02) }),
  build: ({ std }, { dims }) => ({
    params: {
      weight: {
        shape: [dims.context, dims.width],
        init: { kind: 'normal', std },
        role: 'embedding',
        fanIn: 1,
        fanOut: dims.width,
        decay: false,
      },
    },
    embed: (p, x, c) => {
      const table = tensorOf(p, 'weight');
      return add(x, c.positions ? embedding(table, c.positions) : firstRows(table, x, c));
    },
  }),
});

function firstRows(table: Tensor, x: Tensor, _c: ForwardContext): Tensor {
  const [, t, d] = x.shape;
  if (t > table.shape[0])
    throw new AnsatzError(`positions learned: ${t} tokens, the model's context is ${table.shape[0]}`);
  return reshape(slice(table, 0, 0, t), [1, t, d]);
}

registerSlot({
  slot: 'positions',
  kind: 'none',
  summary: 'no positions: causality alone tells order (Kazemnejad et al. 2023)',
  options: z.strictObject({}),
  build: () => ({}),
});
