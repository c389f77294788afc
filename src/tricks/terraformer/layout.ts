/**
 * The Terraformer layout (Jaszczur et al. 2021): a reversible encoder whose tokens, without padding, stand before the
 * decoder's in one row of a causal reversible decoder. There is no cross-attention.
 *
 * Shapes: B batch, T decoder tokens, Te encoder tokens, N = Te + T, d width.
 */
import { z } from 'zod';
import type { Device } from '../../backend/device.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { embeddingTable } from '../../model/decoder.ts';
import { embedTokens } from '../../model/embed.ts';
import { lossOf } from '../../model/loss.ts';
import type { EncoderBatch, EncoderPart, Model, ModelInputs, VisiblePairs } from '../../model/model.ts';
import { layoutOptions, layoutTraits } from '../../model/model.ts';
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
  type RowPass,
  type SlotContext,
  slotSchema,
  tensorOf,
} from '../../nn/index.ts';
import { linear, matrix } from '../../nn/linear.ts';
import { addScaled, concat, pagedChoose, reshape, split, type Tensor } from '../../tensor/index.ts';
import { apart } from '../encoder-decoder/layout.ts';
import { block, type Streams, stackOptions } from '../reversible/index.ts';
import { joinRows, pairsOf, takeRows } from './join.ts';
import { buildRun } from './run.ts';

export const options = z.strictObject({
  ...stackOptions,
  /** Blocks of the encoder; `depth` is the decoder's. */
  encoderDepth: z.int().positive().optional(),
  /** What stands in the encoder's slots; by default what the decoder has. */
  encoderAttention: slotSchema('attention').optional(),
  encoderFfn: slotSchema('ffn').optional(),
  encoderPositions: slotSchema('positions').optional(),
  /** Attention layers of a decoder block, before its feed-forward layer. */
  attentionLayers: z.int().positive().default(2),
  /** How the encoder's streams reach the decoder: as they are, or as norm(Dense(mean)) for both. */
  bridge: z.enum(['streams', 'dense']).default('streams'),
  /** After this many blocks both streams start anew from a dense layer of their mean; 0: never. */
  forgetEvery: z.int().min(0).default(0),
});
type Options = z.output<typeof options>;

/** What the parts of one stack are built with. */
function stack(spec: ModelSpec, depth: number, causal: boolean, kind: ModelSpec['positions'], context: number) {
  const { width, vocab, tied } = spec;
  const d = headWidth(spec);
  const parametrisation = buildParametrisation(spec.parametrisation, { width, depth, headWidth: d });
  const { scales } = parametrisation;
  const { heads } = spec.attention as { heads?: number };
  const shared = { headWidth: d, heads, scales, zLoss: spec.zLoss, ...(causal ? {} : { causal }) };
  const dims = (longest: number) => ({ width, depth, vocab, context: longest, tied });
  const made = (longest: number): Positions =>
    buildSlot('positions', kind, { ...shared, dims: dims(longest), positions: {}, layer: 0 });
  // Only what turns heads or goes by distance sees the joined row; what is added to embeddings sees its own.
  const own = made(spec.context);
  const positions = own.rotate || own.bias ? made(context) : own;
  const at = (layer: number): SlotContext => ({ ...shared, dims: dims(context), positions, layer });
  return { at, positions, scales, parametrisation, norm: (k: number): Norm => buildSlot('norm', spec.norm, at(k)) };
}

const listOf = <T>(n: number, make: (k: number) => T): T[] => Array.from({ length: n }, (_, k) => make(k));

function encoderRun(spec: ModelSpec, o: Options, depth: number, { at, norm }: ReturnType<typeof stack>) {
  const blocks = listOf(depth, (k) =>
    block([
      {
        ...{ normName: 'norm1', norm: norm(k), partName: 'attention' },
        part: buildSlot('attention', o.encoderAttention ?? spec.attention, at(k)),
      },
      {
        ...{ normName: 'norm2', norm: norm(k), partName: 'ffn' },
        part: buildSlot('ffn', o.encoderFfn ?? spec.ffn, at(k)),
      },
    ]),
  );
  return buildRun(blocks, spec.width, o.forgetEvery, o);
}

function decoderRun(spec: ModelSpec, o: Options, { at, norm }: ReturnType<typeof stack>) {
  const blocks = listOf(spec.depth, (k) => {
    const attentions = listOf(o.attentionLayers, (j) => ({
      ...{ normName: j === 0 ? 'norm1' : `norm1_${j + 1}`, norm: norm(k) },
      partName: j === 0 ? 'attention' : `attention_${j + 1}`,
      part: buildSlot('attention', blockSlot(spec, 'attention', k), at(k)),
    }));
    const ffn = buildSlot('ffn', blockSlot(spec, 'ffn', k), at(k));
    return block([...attentions, { normName: 'norm2', norm: norm(k), partName: 'ffn', part: ffn }]);
  });
  return buildRun(blocks, spec.width, o.forgetEvery, o);
}

const positionsModule = ({ params, children }: Positions): Module => ({ params, children });
const mean = ([a, b]: Streams): Tensor => addScaled(a, b, 0.5, 0.5);

export function buildTerraformer(spec: ModelSpec): Model {
  const o = layoutOptions(spec) as Options;
  const { width, context } = spec;
  const encoderDepth = o.encoderDepth ?? spec.depth;
  const enc = stack(spec, encoderDepth, false, o.encoderPositions ?? spec.positions, context);
  const dec = stack(spec, spec.depth, true, spec.positions, layoutTraits(spec).rowContexts! * context);
  const [encoding, decoding] = [encoderRun(spec, o, encoderDepth, enc), decoderRun(spec, o, dec)];
  const bridgeNorm = o.bridge === 'dense' ? enc.norm(encoderDepth) : null;
  const finalNorm = dec.norm(spec.depth);
  const head = buildSlot('head', spec.head, dec.at(spec.depth));
  const table = (p: ParamTree): Tensor => tensorOf(childOf(p, 'embed'), 'weight');

  const encode = (p: ParamTree, batch: EncoderBatch, c: ForwardContext, pairs?: VisiblePairs): Streams =>
    apart(c, 'encoder.', (own) => {
      const tree = childOf(p, 'encoder');
      const { inputs, segments, positions } = batch;
      const masks = { visible: null, keep: null, pairs: pairs?.encoder, positionParams: childOf(tree, 'positions') };
      const inner: ForwardContext = { ...own, segments, positions, ...masks };
      const x = embedTokens(table(p), inputs, { spec, ...enc }, inner);
      const streams = encoding.forward(tree, [x, x], inner);
      if (!bridgeNorm) return streams;
      const bridge = childOf(tree, 'bridge');
      const dense = linear(mean(streams), tensorOf(bridge, 'weight'), inner, { out: 'f32' });
      const e = bridgeNorm.forward(childOf(bridge, 'norm'), dense, { ...inner, activation: 'f32' });
      return [e, e];
    });

  // What the encoder gives: its streams side by side, or one vector for both.
  const given = bridgeNorm ? width : 2 * width;
  const overRows = (x: Tensor, rows: RowPass): Streams => {
    if (!rows.memory) return [x, x];
    const R = x.shape[1];
    const own = reshape(bridgeNorm ? x : concat([x, x], -1), [R, given]);
    const both = reshape(pagedChoose(own, rows.memory.vectors(given), rows.memory.index), [1, R, given]);
    return bridgeNorm ? [both, both] : (split(both, [width, width], -1) as [Tensor, Tensor]);
  };
  const rowPositions = ({ index: { position } }: RowPass): Tensor => reshape(position, [1, position.size]);

  const decode = (
    p: ParamTree,
    { inputs, segments, positions, visible, keep, pairs }: ModelInputs,
    read: { streams: Streams; readers: Tensor | null } | null,
    c: ForwardContext,
  ): Tensor => {
    if (visible || keep) throw new AnsatzError('layout terraformer: its decoder follows the causal mask only');
    const masks = { visible: null, keep: null, positionParams: childOf(p, 'positions') };
    const own: ForwardContext = { ...c, segments, positions, pairs: pairs?.self, ...masks };
    const x = embedTokens(table(p), inputs, { spec, ...dec }, own);
    const norm = (h: Tensor): Tensor => finalNorm.forward(childOf(p, 'norm'), h, own);
    if (c.rows)
      return norm(mean(decoding.forward(p, overRows(x, c.rows), { ...own, positions: rowPositions(c.rows) })));
    if (!read) return norm(mean(decoding.forward(p, [x, x], own)));
    const joined = joinRows(read.streams, x, read.readers, segments);
    const inner = {
      ...own,
      segments: joined.segments,
      positions: joined.positions,
      pairs: pairsOf(pairs, read.streams[0]),
    };
    return norm(takeRows(mean(decoding.forward(p, joined.streams, inner)), joined.place));
  };

  const encoder: EncoderPart = {
    before: true,
    encode: (p, batch, c, pairs) => {
      const [a, b] = encode(p, batch, c, pairs);
      return a === b ? a : concat([a, b], -1);
    },
    // What the decoder reads is the streams themselves.
    crossKeyValues: (_, states) => {
      const [B, Te, n] = states.shape;
      const [key, value] = n === width ? [states, states] : split(states, [width, width], -1);
      return [{ key: reshape(key, [B, Te, 1, width]), value: reshape(value, [B, Te, 1, width]) }];
    },
    decode: (p, inputs, [memory], readers, c) => {
      if (!memory) return decode(p, inputs, null, c);
      const [B, Te] = memory.key.shape;
      const streams: Streams = [reshape(memory.key, [B, Te, width]), reshape(memory.value, [B, Te, width])];
      return decode(p, inputs, { streams, readers }, c);
    },
  };

  const hidden = (p: ParamTree, batch: ModelInputs, c: ForwardContext): Tensor => {
    if (!batch.encoder) return decode(p, batch, null, c);
    const streams = encode(p, batch.encoder, c, batch.pairs);
    return decode(p, batch, { streams, readers: batch.encoder.readers ?? batch.encoder.segments }, c);
  };

  return {
    spec,
    // Each stack by its own depth.
    adjust: (p) => (p.path.startsWith('encoder.') ? enc : dec).parametrisation.param(p),
    children: {
      embed: { params: { weight: embeddingTable(spec) } },
      encoder: {
        children: {
          positions: positionsModule(enc.positions),
          ...encoding.children,
          ...(bridgeNorm
            ? { bridge: { params: { weight: matrix(width, width) }, children: { norm: bridgeNorm } } }
            : {}),
        },
      },
      positions: positionsModule(dec.positions),
      ...decoding.children,
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
    // A decoder's (or reversible) checkpoint starts both stacks off.
    startFrom: (path) => (path.startsWith('encoder.') ? path.slice('encoder.'.length) : undefined),
  };
}
