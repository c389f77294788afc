/**
 * The encoder-decoder layout: a bidirectional encoder, and a causal decoder whose blocks look at what it has read.
 * Embeddings are shared. Decoder parameters have a decoder's names; the encoder's are the same under `encoder.`.
 *
 * Shapes: B batch, T decoder tokens, Te encoder tokens, d width.
 */
import { z } from 'zod';
import type { Device } from '../../backend/device.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { embeddingTable } from '../../model/decoder.ts';
import { embedTokens } from '../../model/embed.ts';
import { lossOf } from '../../model/loss.ts';
import type { EncoderPart, Memory, Model, ModelInputs } from '../../model/model.ts';
import { layoutOptions } from '../../model/model.ts';
import { blockSlot, headWidth, type ModelSpec } from '../../model/spec.ts';
import {
  buildParametrisation,
  buildSlot,
  childOf,
  type ForwardContext,
  type Module,
  type Norm,
  type ParamTree,
  type Positions,
  type SlotContext,
  slotSchema,
  tap,
  tensorOf,
} from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import { type Cross, crossAttention } from './cross.ts';
import { mergedAttention } from './merged.ts';
import { crossBlock, type DecoderBlock, encoderBlock, mergedBlock } from './stacks.ts';

export const options = z.strictObject({
  /** Blocks of the encoder; `depth` is the decoder's. */
  encoderDepth: z.int().positive().optional(),
  /** What stands in the encoder's slots; by default what the decoder has. */
  encoderAttention: slotSchema('attention').optional(),
  encoderFfn: slotSchema('ffn').optional(),
  encoderPositions: slotSchema('positions').optional(),
  /** Every n-th decoder block looks at the memory (FiDO), the last one always. */
  crossEvery: z.int().positive().default(1),
  /** Heads of cross-attention, and of its keys and values; by default those of the decoder's attention. */
  crossHeads: z.int().positive().optional(),
  crossKvHeads: z.int().positive().optional(),
  /** One softmax over memory and past in each decoder block, with shared matrices (T5Gemma 2). */
  merged: z.boolean().default(false),
});
type Options = z.output<typeof options>;

/** The slots of one stack. */
function stack(spec: ModelSpec, depth: number, causal: boolean, own = spec.positions) {
  const { width, vocab, context, tied } = spec;
  const dims = { width, depth, vocab, context, tied };
  const d = headWidth(spec);
  const parametrisation = buildParametrisation(spec.parametrisation, { width, depth, headWidth: d });
  const { scales } = parametrisation;
  const { heads } = spec.attention as { heads?: number };
  const shared = { dims, headWidth: d, heads, scales, zLoss: spec.zLoss, ...(causal ? {} : { causal }) };
  const positions = buildSlot('positions', own, { ...shared, positions: {}, layer: 0 });
  const at = (layer: number): SlotContext => ({ ...shared, positions, layer });
  return { at, positions, scales, parametrisation, norm: (k: number): Norm => buildSlot('norm', spec.norm, at(k)) };
}

function decoderBlocks(spec: ModelSpec, o: Options, { at, norm }: ReturnType<typeof stack>): DecoderBlock[] {
  const of = (name: 'heads' | 'kvHeads'): number | undefined =>
    (spec.attention as { heads?: number; kvHeads?: number })[name];
  const heads = o.crossHeads ?? of('heads') ?? Math.max(1, Math.floor(spec.width / headWidth(spec)));
  const kvHeads = o.crossKvHeads ?? (o.crossHeads ? o.crossHeads : (of('kvHeads') ?? heads));
  return Array.from({ length: spec.depth }, (_, k) => {
    const ffn = buildSlot('ffn', blockSlot(spec, 'ffn', k), at(k));
    if (o.merged) {
      mustBePlain(blockSlot(spec, 'attention', k), o);
      const own = { heads: of('heads')!, kvHeads: of('kvHeads') ?? of('heads')! };
      return mergedBlock(norm(k), mergedAttention(own, at(k)), norm(k), ffn);
    }
    const looks = (k + 1) % o.crossEvery === 0 || k === spec.depth - 1;
    const cross: Cross | null = looks ? crossAttention({ heads, kvHeads }, at(k)) : null;
    const attention = buildSlot('attention', blockSlot(spec, 'attention', k), at(k));
    return crossBlock({ norm1: norm(k), normCross: norm(k), norm2: norm(k) }, attention, cross, ffn);
  });
}

function mustBePlain(attention: { readonly kind: string; readonly [option: string]: unknown }, o: Options): void {
  const { kind, window, bias, dropout: rate } = attention;
  if (kind !== 'full' || window || bias || rate || o.crossHeads || o.crossKvHeads || o.crossEvery > 1)
    throw new AnsatzError('layout encoder-decoder: merged attention is plain attention over two texts', {
      hint: "use attention 'full' without window, bias and dropout, and no cross options, or layout.merged=false",
    });
}

const positionsModule = ({ params, children }: Positions): Module => ({ params, children });
const listed = (blocks: readonly Module[]): Module => ({
  children: Object.fromEntries(blocks.map((b, k) => [String(k), b])),
});

/** Runs `fn` with losses and taps of its own, and hands them on under a prefix: layers of two stacks share numbers. */
export function apart<R>(c: ForwardContext, prefix: string, fn: (inner: ForwardContext) => R): R {
  const inner = { ...c, losses: new Map<string, Tensor>(), taps: c.taps ? new Map<string, Tensor>() : null };
  const result = fn(inner);
  for (const [name, t] of inner.losses) c.losses.set(prefix + name, t);
  for (const [name, t] of inner.taps ?? []) c.taps!.set(prefix + name, t);
  return result;
}

export function buildEncoderDecoder(spec: ModelSpec): Model {
  const o = layoutOptions(spec) as Options;
  const encoderDepth = o.encoderDepth ?? spec.depth;
  const [enc, dec] = [stack(spec, encoderDepth, false, o.encoderPositions), stack(spec, spec.depth, true)];
  const encoderBlocks = Array.from({ length: encoderDepth }, (_, k) => {
    const attention = buildSlot('attention', o.encoderAttention ?? spec.attention, enc.at(k));
    return encoderBlock(enc.norm(k), attention, enc.norm(k), buildSlot('ffn', o.encoderFfn ?? spec.ffn, enc.at(k)));
  });
  const blocks = decoderBlocks(spec, o, dec);
  const [encoderNorm, finalNorm] = [enc.norm(encoderDepth), dec.norm(spec.depth)];
  const head = buildSlot('head', spec.head, dec.at(spec.depth));
  const table = (p: ParamTree): Tensor => tensorOf(childOf(p, 'embed'), 'weight');

  const encoder: EncoderPart = {
    encode: (p, { inputs, segments, positions }, c, pairs) =>
      apart(c, 'encoder.', (own) => {
        const tree = childOf(p, 'encoder');
        const positionParams = childOf(tree, 'positions');
        const masks = { visible: null, keep: null, pairs: pairs?.encoder };
        const inner: ForwardContext = { ...own, segments, positions, ...masks, positionParams };
        let x_BTd = embedTokens(table(p), inputs, { spec, ...enc }, inner);
        const trees = childOf(tree, 'blocks');
        encoderBlocks.forEach((b, k) => {
          x_BTd = b.forward(childOf(trees, String(k)), x_BTd, inner);
          tap(inner, `blocks.${k}.residual`, () => x_BTd);
        });
        return encoderNorm.forward(childOf(tree, 'norm'), x_BTd, inner);
      }),
    crossKeyValues: (p, states, c): Memory => {
      const trees = childOf(p, 'blocks');
      return blocks.map((b, k) => b.keyValue(childOf(trees, String(k)), states, c));
    },
    decode: (p, inputs, memory, readers, c) => decode(p, inputs, memory, readers, c),
  };

  const decode = (
    p: ParamTree,
    { inputs, segments, positions, visible = null, keep = null, pairs }: ModelInputs,
    memory: Memory | null,
    readers: Tensor | null,
    c: ForwardContext,
  ): Tensor => {
    if (o.merged && (visible || keep))
      throw new AnsatzError('layout encoder-decoder: merged attention follows the causal mask only');
    if (readers && !segments)
      throw new AnsatzError('layout encoder-decoder: the decoder needs segments where the memory has readers');
    const positionParams = childOf(p, 'positions');
    const inner: ForwardContext = { ...c, segments, positions, visible, keep, pairs: pairs?.self, positionParams };
    let x_BTd = embedTokens(table(p), inputs, { spec, ...dec }, inner);
    const trees = childOf(p, 'blocks');
    blocks.forEach((b, k) => {
      const seen = memory?.[k] ? { ...memory[k], readers, pairs: pairs?.cross } : null;
      x_BTd = b.forward(childOf(trees, String(k)), x_BTd, seen, inner);
      tap(inner, `blocks.${k}.residual`, () => x_BTd);
    });
    return finalNorm.forward(childOf(p, 'norm'), x_BTd, inner);
  };

  const hidden = (p: ParamTree, batch: ModelInputs, c: ForwardContext): Tensor => {
    if (!batch.encoder) return decode(p, batch, null, null, c);
    const memory = encoder.crossKeyValues(p, encoder.encode(p, batch.encoder, c, batch.pairs), c);
    return decode(p, batch, memory, batch.encoder.readers ?? batch.encoder.segments, c);
  };

  return {
    spec,
    // Each stack by its own depth.
    adjust: (p) => (p.path.startsWith('encoder.') ? enc : dec).parametrisation.param(p),
    children: {
      embed: { params: { weight: embeddingTable(spec) } },
      encoder: {
        children: { positions: positionsModule(enc.positions), blocks: listed(encoderBlocks), norm: encoderNorm },
      },
      positions: positionsModule(dec.positions),
      blocks: listed(blocks),
      norm: finalNorm,
      head,
    },
    prepare: (device: Device) => {
      enc.positions.prepare?.(device);
      dec.positions.prepare?.(device);
    },
    encoder,
    hidden,
    logits: (p, h, c) => head.logits(childOf(p, 'head'), table(p), h, c),
    loss: (p, batch, c) => lossOf(head, childOf(p, 'head'), table(p), hidden(p, batch, c), batch, c),
    // A decoder's checkpoint starts both stacks off: its blocks, the causal mask removed (T5Gemma).
    startFrom: (path) => (path.startsWith('encoder.') ? path.slice('encoder.'.length) : undefined),
  };
}
