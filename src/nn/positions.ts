/** Positions slot: rotary, learned, or none. */
import { z } from 'zod';
import type { Device } from '../backend/device.ts';
import { AnsatzError } from '../backend/errors.ts';
import { add, embedding, type RotaryTable, reshape, rope, slice, Tensor } from '../tensor/index.ts';
import { tensorOf } from './module.ts';
import { type Positions, registerSlot } from './slots.ts';

/** Periods over 2 pi of the pairs of a head: theta^(2k/R), in tokens (Su et al. 2021). */
export const rotaryPeriods = (rotated: number, theta: number): Float64Array =>
  Float64Array.from({ length: rotated / 2 }, (_, k) => theta ** (k / (rotated / 2)));

/** cos and sin of position / period, times a factor, f32 [positions, periods] each; `first` is the first position. */
export function rotaryTables(
  positions: number,
  periods: Float64Array,
  factor: (position: number, pair: number) => number = () => 1,
  first = 0,
): { cos: Float32Array; sin: Float32Array } {
  const half = periods.length;
  const cos = new Float32Array(positions * half);
  const sin = new Float32Array(positions * half);
  for (let t = 0; t < positions; t++)
    for (let k = 0; k < half; k++) {
      const angle = (first + t) / periods[k];
      const f = factor(first + t, k);
      cos[t * half + k] = f * Math.cos(angle);
      sin[t * half + k] = f * Math.sin(angle);
    }
  return { cos, sin };
}

/** Constants of a device: made before any step is captured, on first use. */
export function perDevice<T>(make: (device: Device) => T): (device: Device) => T {
  const made = new Map<Device, T>();
  return (device) => {
    if (!made.has(device)) made.set(device, make(device));
    return made.get(device)!;
  };
}

/** A pair of tables as tensors that live as long as the model. */
export function tableOn(device: Device, table: { cos: Float32Array; sin: Float32Array }, half: number): RotaryTable {
  const shape = [table.cos.length / half, half];
  return { cos: Tensor.from(device, table.cos, shape).keep(), sin: Tensor.from(device, table.sin, shape).keep() };
}

/** How many dimensions of a head are turned. */
export function rotatedWidth(kind: string, headWidth: number, fraction: number): number {
  const rotated = 2 * Math.floor((headWidth * fraction) / 2);
  if (rotated < 2) throw new AnsatzError(`positions ${kind}: a head of ${headWidth} has no pair to turn`);
  if (fraction === 1 && rotated !== headWidth)
    throw new AnsatzError(`positions ${kind}: a head of ${headWidth} does not split into pairs`, {
      hint: 'use an even head width, or turn a part of it: positions.fraction below 1',
    });
  return rotated;
}

/** Positions that turn queries and keys by the same tables; `factor` multiplies both. */
export function rotaryPositions(context: number, periods: Float64Array, interleaved: boolean, factor = 1): Positions {
  const on = perDevice((device) =>
    tableOn(device, rotaryTables(context, periods, factor === 1 ? undefined : () => factor), periods.length),
  );
  return {
    prepare: (device) => void on(device),
    rotate: (qkv, heads, kvHeads, c) => {
      const { cos, sin } = on(c.device);
      return rope(qkv, cos, sin, { rotated: heads + kvHeads, interleaved, positions: c.positions });
    },
  };
}

/** Positions of one base that can be had with others, which are prepared with it. */
export function withBases(theta: number, make: (theta: number) => Positions): Positions {
  const made = new Map<number, Positions>();
  const of = (base: number): Positions => {
    const positions = made.get(base) ?? make(base);
    made.set(base, positions);
    return positions;
  };
  const prepare = (device: Device): void => {
    for (const positions of made.values()) positions.prepare?.(device);
  };
  return { ...of(theta), prepare, rebased: of };
}

export const ropeOptions = {
  theta: z.number().positive().default(10000),
  /** Share of each head that is turned. */
  fraction: z.number().positive().max(1).default(1),
  interleaved: z.boolean().default(false),
};

registerSlot({
  slot: 'positions',
  kind: 'rope',
  summary: 'rotary positions: queries and keys turn by an angle proportional to position',
  options: z.strictObject(ropeOptions),
  build: ({ theta, fraction, interleaved }, { dims, headWidth }) => {
    const rotated = rotatedWidth('rope', headWidth, fraction);
    return withBases(theta, (base) => rotaryPositions(dims.context, rotaryPeriods(rotated, base), interleaved));
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
      return add(x, c.positions ? embedding(table, c.positions) : firstRows(table, x));
    },
  }),
});

function firstRows(table: Tensor, x: Tensor): Tensor {
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
