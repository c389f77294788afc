/**
 * Attention whose queries, keys and values come from one factored dense layer and three small causal convolutions.
 *
 * Shapes: B batch, T tokens, S modules, M = d/S, H heads.
 */
import { z } from 'zod';
import { AnsatzError } from '../../backend/errors.ts';
import {
  type ForwardContext,
  type Mixer,
  type ParamSpec,
  type ParamTree,
  recent,
  type SlotContext,
  tap,
  tensorOf,
} from '../../nn/index.ts';
import { matrix, vector, writeBranch } from '../../nn/linear.ts';
import {
  addScaled,
  attentionPacked,
  cast,
  concat,
  dequantise,
  dropout,
  factoredLinear,
  isBlock,
  moduleConv,
  moduleConvRows,
  pagedSelfAttention,
  reshape,
  slice,
  type Tensor,
} from '../../tensor/index.ts';
import { factors } from './factors.ts';

export const sparseQkvSchema = z.strictObject({
  heads: z.int().positive(),
  /** S; by default one a head. */
  modules: z.int().positive().optional(),
  /** Tokens that a convolution reaches: the present one and those before it. */
  lengthKernel: z.int().positive().default(3),
  /** Neighbouring modules that the convolutions of queries and keys see; odd. Those of values see one. */
  moduleKernel: z.int().positive().default(3),
  /** Queries and keys from one convolution. */
  shareQk: z.boolean().default(false),
  /** What stands between the heads and the residual stream: nothing (as published), a factored layer, a matrix. */
  output: z.enum(['none', 'multiplicative', 'dense']).default('none'),
  window: z.int().min(0).default(0),
  bias: z.boolean().default(true),
  dropout: z.number().min(0).lt(1).default(0),
});
export type SparseQkvOptions = z.output<typeof sparseQkvSchema>;

export function buildSparseQkv(o: SparseQkvOptions, context: SlotContext): Mixer {
  const { dims, positions, scales } = context;
  const { width: d, depth } = dims;
  const { heads, bias } = o;
  const S = o.modules ?? heads;
  const M = d / S;
  if (d % S || d % heads)
    throw new AnsatzError(`sparse-qkv: ${S} modules and ${heads} heads must divide the width ${d}`);
  if (o.moduleKernel % 2 === 0)
    throw new AnsatzError(`sparse-qkv: a module kernel of ${o.moduleKernel} has no middle`, { hint: 'use an odd one' });
  if (positions.reach !== undefined && dims.context > positions.reach)
    throw new AnsatzError(`sparse-qkv: a context of ${dims.context} is more than these positions turn at once`, {
      hint: `lower model.context to ${positions.reach}`,
    });
  const conv = (J: number): ParamSpec => {
    const fanIn = o.lengthKernel * J * M;
    // Glorot's variance: in and out have the same receptive field.
    const init = { kind: 'normal', std: 1 / Math.sqrt(fanIn) } as const;
    return { shape: [M, o.lengthKernel, J, M], init, role: 'hidden', fanIn, fanOut: M, decay: true };
  };
  const parts = o.shareQk ? ['qk', 'v'] : ['q', 'k', 'v'];
  const { D, E } = factors(S, M, d);
  const out = factors(S, M, d);
  const params: Record<string, ParamSpec> = {
    gate: D,
    kernel: E,
    ...Object.fromEntries(parts.map((name) => [name, conv(name === 'v' ? 1 : o.moduleKernel)])),
    ...(o.output === 'multiplicative' ? { outGate: out.D, outKernel: out.E } : {}),
    ...(o.output === 'dense' ? { out: matrix(d, d, 1 / Math.sqrt(2 * depth)) } : {}),
  };
  if (bias) {
    params.kernelBias = vector(d, 0);
    for (const name of parts) params[`${name}Bias`] = vector(M, 0);
    if (o.output !== 'none') params.outBias = vector(d, 0);
  }
  const biasOf = (p: ParamTree, name: string): Tensor | null => (bias ? tensorOf(p, `${name}Bias`) : null);

  /** A kernel that may be in blocks, [M, lengthKernel J M], as convolutions over whole texts want it. */
  const plainKernel = (p: ParamTree, name: string): Tensor => {
    const w = tensorOf(p, name);
    return isBlock(w.dtype) ? reshape(dequantise(w), [M, o.lengthKernel, w.shape[1] / (o.lengthKernel * M), M]) : w;
  };

  const packed = (p: ParamTree, x: Tensor, c: ForwardContext): Tensor => {
    const [b, t] = x.shape;
    const { compute } = c;
    const u = factoredLinear(x, tensorOf(p, 'gate'), tensorOf(p, 'kernel'), { bias: biasOf(p, 'kernel'), compute });
    const u_BTSM = reshape(u, [b, t, S, M]);
    if (c.rows) return packedRows(p, recent(c.rows, u_BTSM, o.lengthKernel), c);
    // Taps in another segment read zeros: documents that share a row stay apart.
    const options = { segments: c.segments, compute };
    const convolved = parts.map((name) =>
      reshape(moduleConv(u_BTSM, plainKernel(p, name), biasOf(p, name), options), [b, t, heads, d / heads]),
    );
    const [q, v] = [convolved[0], convolved[convolved.length - 1]];
    return concat([q, o.shareQk ? q : convolved[1], v], 2);
  };

  /** The same for rows, each with the tokens that its convolutions reach: u f32 [R, lengthKernel, S, M]. */
  const packedRows = (p: ParamTree, u: Tensor, c: ForwardContext): Tensor => {
    const [rows, reach] = u.shape;
    const { compute, activation } = c;
    const apart = (t: Tensor, n: number): Tensor => reshape(t, [1, rows, n * heads, d / heads]);
    if (parts.every((name) => isBlock(tensorOf(p, name).dtype))) {
      const taps = parts.map((name) => ({ w: tensorOf(p, name), bias: biasOf(p, name) }));
      const y = apart(moduleConvRows(u, taps, { compute, out: activation }), parts.length);
      return o.shareQk ? concat([slice(y, 2, 0, heads), y], 2) : y;
    }
    const input = activation === 'bf16' ? cast(u, 'bf16') : u;
    const convolved = parts.map((name) => {
      const all = moduleConv(input, plainKernel(p, name), biasOf(p, name), { segments: null, compute });
      return apart(slice(all, 1, reach - 1, reach), 1);
    });
    const [q, v] = [convolved[0], convolved[convolved.length - 1]];
    return concat([q, o.shareQk ? q : convolved[1], v], 2);
  };

  const write = (p: ParamTree, mixed: Tensor, residual: Tensor, c: ForwardContext): Tensor => {
    const outBias = bias && o.output !== 'none' ? tensorOf(p, 'outBias') : null;
    if (o.output === 'dense')
      return writeBranch(mixed, tensorOf(p, 'out'), residual, c, {
        bias: outBias,
        scale: scales.branch,
        dropout: o.dropout,
      });
    const { compute } = c;
    const y =
      o.output === 'none'
        ? mixed
        : factoredLinear(mixed, tensorOf(p, 'outGate'), tensorOf(p, 'outKernel'), { bias: outBias, compute });
    const kept = c.random && o.dropout > 0 ? dropout(y, c.random, o.dropout, c.nextStream()) : y;
    return addScaled(residual, kept, 1, scales.branch);
  };

  return {
    params,
    forward: (p, x, residual, c) => {
      const [b, t] = x.shape;
      if (c.visible || c.keep)
        throw new AnsatzError('sparse-qkv: its convolutions look back only, and see tokens that a mask hides', {
          hint: "use attention 'full' where queries see ahead or keys are dropped",
        });
      let qkv = packed(p, x, c);
      if (positions.rotate) qkv = positions.rotate(qkv, heads, heads, c);
      tap(c, `blocks.${context.layer}.attention.qkv`, () => qkv);
      if (c.rows) {
        const { pool, format } = c.rows.keyValues(heads, d / heads);
        const biases = positions.bias ? positions.bias(c.positionParams, heads, 1, dims.context, c) : null;
        const scale = scales.attention(d / heads);
        const sizes = { heads, kvHeads: heads, width: d / heads, format, window: o.window };
        const options = { ...sizes, scale, bias: biases, seen: c.rows.seen };
        const flat = reshape(qkv, [t, 3 * heads, d / heads]);
        return write(p, reshape(pagedSelfAttention(flat, pool, c.rows.index, options), [b, t, d]), residual, c);
      }
      const mixed = attentionPacked(qkv, heads, heads, {
        causal: true,
        window: o.window,
        scale: scales.attention(d / heads),
        segments: c.segments,
        pairs: o.window ? undefined : c.pairs,
        bias: positions.bias ? positions.bias(c.positionParams, heads, t, t, c) : null,
      });
      return write(p, reshape(mixed, [b, t, d]), residual, c);
    },
  };
}
