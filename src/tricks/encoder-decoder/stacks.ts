/** The two stacks: bidirectional blocks, and causal blocks that look at a memory. */
import { childOf, type ForwardContext, type Mixer, type Module, type Norm, type ParamTree } from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import type { Cross, KeyValue, Seen } from './cross.ts';
import type { Merged } from './merged.ts';

export interface EncoderBlock extends Module {
  forward(p: ParamTree, x_BTd: Tensor, c: ForwardContext): Tensor;
}

/** x + attention(norm(x)), then x + ffn(norm(x)). */
export function encoderBlock(norm1: Norm, attention: Mixer, norm2: Norm, ffn: Mixer): EncoderBlock {
  return {
    children: { norm1, attention, norm2, ffn },
    forward: (p, x, c) => {
      const mid = attention.forward(childOf(p, 'attention'), norm1.forward(childOf(p, 'norm1'), x, c), x, c);
      return ffn.forward(childOf(p, 'ffn'), norm2.forward(childOf(p, 'norm2'), mid, c), mid, c);
    },
  };
}

export interface DecoderBlock extends Module {
  /** Null for blocks that do not look at the memory. */
  keyValue(p: ParamTree, states: Tensor, c: ForwardContext): KeyValue | null;
  forward(p: ParamTree, x_BTd: Tensor, memory: Seen | null, c: ForwardContext): Tensor;
}

/** As above with x + cross(norm(x), memory) between the two; without a memory that step is left out. */
export function crossBlock(
  norms: { norm1: Norm; normCross: Norm; norm2: Norm },
  attention: Mixer,
  cross: Cross | null,
  ffn: Mixer,
): DecoderBlock {
  const { norm1, normCross, norm2 } = norms;
  return {
    children: { norm1, attention, ...(cross ? { normCross, cross } : {}), norm2, ffn },
    keyValue: (p, states, c) => cross?.keyValue(childOf(p, 'cross'), states, c) ?? null,
    forward: (p, x, memory, c) => {
      let mid = attention.forward(childOf(p, 'attention'), norm1.forward(childOf(p, 'norm1'), x, c), x, c);
      if (cross && (memory || c.rows?.memory)) {
        const query = normCross.forward(childOf(p, 'normCross'), mid, c);
        mid = cross.forward(childOf(p, 'cross'), query, mid, memory, c);
      }
      return ffn.forward(childOf(p, 'ffn'), norm2.forward(childOf(p, 'norm2'), mid, c), mid, c);
    },
  };
}

/** One attention over the memory and the decoder's own past. */
export function mergedBlock(norm1: Norm, attention: Merged, norm2: Norm, ffn: Mixer): DecoderBlock {
  return {
    children: { norm1, attention, norm2, ffn },
    keyValue: (p, states, c) => attention.keyValue(childOf(p, 'attention'), states, c),
    forward: (p, x, memory, c) => {
      const mid = attention.forward(childOf(p, 'attention'), norm1.forward(childOf(p, 'norm1'), x, c), x, memory, c);
      return ffn.forward(childOf(p, 'ffn'), norm2.forward(childOf(p, 'norm2'), mid, c), mid, c);
    },
  };
}
