/** Softmax attention that never stores the T x T matrix (Dao et al. 2022), and rotary positions. */

import { sizeOf } from '../../backend/dtype.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp, type Inputs, type Op } from '../op.ts';
import type { Tensor } from '../tensor.ts';
import { show, wantDType, wantFloat } from './common.ts';

export interface AttentionOptions {
  causal?: boolean;
  /** A query sees keys less than this far away; 0 means all. */
  window?: number;
  /** Factor on q.k; by default 1/sqrt(D). */
  scale?: number;
  /** Added to the logits: f32 [H, Tq+Tk-1] by relative position, or [H, Tq, Tk]. */
  bias?: Tensor | null;
  /** i32 [B, Tq] and [B, Tk]: a query sees only keys of its own segment. */
  segments?: Tensor | null;
  keySegments?: Tensor | null;
  /** i32 [B, Tq]: with `causal`, a query sees keys up to this one even if they lie ahead of it (prefix-LM). */
  visible?: Tensor | null;
  /** i32 [B, Tk]: a key with 0 is seen by the query at its own position only. */
  keep?: Tensor | null;
  /** Pairs (query, key) that are seen in a row on average, when segments make that known: for cost accounting alone. */
  pairs?: number;
}

interface Params {
  readonly causal: boolean;
  readonly window: number;
  readonly scale: number;
  readonly biasMode: 0 | 1 | 2;
  /** Heads of queries and of keys when q, k and v are packed in one tensor; 0 when they are apart. */
  readonly heads: number;
  readonly kvHeads: number;
  readonly pairs?: number;
}

interface Geometry {
  b: number;
  tq: number;
  tk: number;
  h: number;
  hkv: number;
  d: number;
}

function geometry(inputs: Inputs, p: Params): Geometry {
  const q = inputs[0]!;
  if (p.heads) {
    const [b, t, , d] = q.shape;
    return { b, tq: t, tk: t, h: p.heads, hkv: p.kvHeads, d };
  }
  const k = inputs[1]!;
  return { b: q.shape[0], tq: q.shape[1], tk: k.shape[1], h: q.shape[2], hkv: k.shape[2], d: q.shape[3] };
}

/** Pairs (query, key) that are computed, per head and batch: what causality and the window leave. */
export function visiblePairs(tq: number, tk: number, causal: boolean, window: number): number {
  let pairs = 0;
  for (let i = 0; i < tq; i++) {
    const pos = i + tk - tq;
    const low = window ? Math.max(0, pos - window + 1) : 0;
    const high = causal ? Math.min(tk - 1, pos) : window ? Math.min(tk - 1, pos + window - 1) : tk - 1;
    pairs += Math.max(0, high - low + 1);
  }
  return pairs;
}
const pairCache = new Map<string, number>();
function pairs(g: Geometry, p: Params): number {
  if (p.pairs !== undefined) return p.pairs * g.b * g.h;
  const key = `${g.tq},${g.tk},${p.causal},${p.window}`;
  let n = pairCache.get(key);
  if (n === undefined) pairCache.set(key, (n = visiblePairs(g.tq, g.tk, p.causal, p.window)));
  return n * g.b * g.h;
}

/** Kernel arguments for q, k, v (or their gradients): apart, or parts of one packed tensor. */
function parts(tensors: Inputs, g: Geometry, packed: boolean): { args: ReturnType<Tensor['arg']>[]; tok: number[] } {
  const [q, k, v] = tensors;
  if (packed) {
    const tok = (g.h + 2 * g.hkv) * g.d;
    return { args: [q!.arg(), q!.arg(g.h * g.d), q!.arg((g.h + g.hkv) * g.d)], tok: [tok, tok, tok] };
  }
  return { args: [q!.arg(), k!.arg(), v!.arg()], tok: [g.h * g.d, g.hkv * g.d, g.hkv * g.d] };
}

const heads4 = (t: Tensor, what: string): void => {
  wantFloat(t, 'attention');
  if (t.rank !== 4)
    throw new AnsatzError(`attention: ${what} must be [batch, tokens, heads, width], not ${show(t.shape)}`);
};

function check(inputs: Inputs, p: Params, bias: Tensor | null, segQ: Tensor | null, segK: Tensor | null): Geometry {
  const g = geometry(inputs, p);
  if (g.h % g.hkv) throw new AnsatzError(`attention: ${g.h} query heads do not share ${g.hkv} key heads evenly`);
  if (bias) {
    wantDType(bias, 'f32', 'attention', 'the bias');
    const want = p.biasMode === 1 ? [g.h, g.tq + g.tk - 1] : [g.h, g.tq, g.tk];
    if (show(bias.shape) !== show(want))
      throw new AnsatzError(`attention: bias ${show(bias.shape)} should be ${show(want)}`);
  }
  for (const [s, t] of [
    [segQ, g.tq],
    [segK, g.tk],
  ] as const) {
    wantDType(s, 'i32', 'attention', 'segments');
    if (s && show(s.shape) !== show([g.b, t]))
      throw new AnsatzError(`attention: segments ${show(s.shape)} should be ${show([g.b, t])}`);
  }
  return g;
}

/** visible and keep as trailing kernel arguments: left out where there are none. */
function checkMasks(g: Geometry, visible: Tensor | null, keep: Tensor | null): void {
  for (const [mask, t, what] of [
    [visible, g.tq, 'visible'],
    [keep, g.tk, 'keep'],
  ] as const) {
    wantDType(mask, 'i32', 'attention', what);
    if (mask && show(mask.shape) !== show([g.b, t]))
      throw new AnsatzError(`attention: ${what} ${show(mask.shape)} should be ${show([g.b, t])}`);
  }
}

function maskArgs(visible: Tensor | null, keep: Tensor | null): (ReturnType<Tensor['arg']> | null)[] {
  if (keep) return [visible?.arg() ?? null, keep.arg()];
  return visible ? [visible.arg()] : [];
}

const flags = (g: Geometry, p: Params, tok: number[]): number[] => [
  g.b,
  g.tq,
  g.tk,
  g.h,
  g.hkv,
  g.d,
  ...tok,
  g.h * g.d,
  +p.causal,
  p.window,
  p.biasMode,
];

/** Inputs: q, k, v (or packed, null, null), bias?, segQ?, segK?, visible?, keep?. Outputs: out and the log-sum-exp of each row. */
const attentionOp = defineOp<Params>({
  name: 'attention',
  infer: (inputs, p) => {
    const [q, , , bias, segQ, segK, visible, keep] = inputs;
    const g = check(inputs, p, bias, segQ, segK);
    checkMasks(g, visible, keep);
    return [
      { shape: [g.b, g.tq, g.h, g.d], dtype: q!.dtype },
      { shape: [g.b, g.h, g.tq], dtype: 'f32' },
    ];
  },
  launch: (inputs, [out, lse], p) => {
    const [, , , bias, segQ, segK, visible, keep] = inputs;
    const g = geometry(inputs, p);
    const { args, tok } = parts(inputs, g, p.heads > 0);
    const rest = [bias?.arg() ?? null, segQ?.arg() ?? null, segK?.arg() ?? null, ...maskArgs(visible, keep)];
    return {
      kernel: 'attention',
      args: [out.arg(), lse.arg(), ...args, ...rest],
      ints: flags(g, p, tok),
      floats: [p.scale],
    };
  },
  flops: (inputs, _, p) => {
    const g = geometry(inputs, p);
    return 4 * pairs(g, p) * g.d;
  },
  gradient: ({ inputs, outputs: [out, lse], grads: [dout], params, needs }) => {
    const [q, k, v, bias, segQ, segK, visible, keep] = inputs;
    const wantBias = bias !== null && needs(3);
    const all = [q, k, v, bias, segQ, segK, dout, out, lse, visible, keep];
    const grads = apply(attentionBwd, all, { ...params, wantBias });
    const rest = params.heads ? grads.slice(1) : grads.slice(3);
    return [
      grads[0],
      params.heads ? null : grads[1],
      params.heads ? null : grads[2],
      wantBias ? rest[0] : null,
      null,
      null,
      null,
      null,
    ];
  },
});

const attentionBwd = defineOp<Params & { wantBias: boolean }>({
  name: 'attention_bwd',
  infer: ([q, k, v, bias], p) => [
    ...[q, k, v].filter((t) => t !== null).map((t) => ({ shape: t.shape, dtype: t.dtype })),
    ...(p.wantBias ? [{ shape: bias!.shape, dtype: bias!.dtype }] : []),
  ],
  launch: (inputs, outputs, p) => {
    const [, , , bias, segQ, segK, dout, out, lse, visible, keep] = inputs;
    const g = geometry(inputs, p);
    const packed = p.heads > 0;
    const dbias = p.wantBias ? outputs[outputs.length - 1].arg() : null;
    const x = parts(inputs, g, packed);
    const dx = parts(packed ? [outputs[0], null, null] : outputs, g, packed);
    return {
      kernel: 'attention_bwd',
      args: [
        ...dx.args,
        dbias,
        dout!.arg(),
        ...x.args,
        out!.arg(),
        lse!.arg(),
        bias?.arg() ?? null,
        segQ?.arg() ?? null,
        segK?.arg() ?? null,
        ...maskArgs(visible, keep),
      ],
      ints: [...flags(g, p, x.tok), ...dx.tok, g.h * g.d],
      floats: [p.scale],
    };
  },
  // Five products where the forward pass has two: the scores are computed again.
  flops: (inputs, _, p) => {
    const g = geometry(inputs, p);
    return 10 * pairs(g, p) * g.d;
  },
});

function params(d: number, o: AttentionOptions, heads: number, kvHeads: number): Params {
  if ((o.window ?? 0) < 0) throw new AnsatzError(`attention: window ${o.window} must not be negative`);
  return {
    causal: o.causal ?? false,
    window: o.window ?? 0,
    scale: o.scale ?? 1 / Math.sqrt(d),
    biasMode: o.bias ? (o.bias.rank === 2 ? 1 : 2) : 0,
    heads,
    kvHeads,
    ...(o.pairs === undefined ? {} : { pairs: o.pairs }),
  };
}

/**
 * softmax(scale q k^T + bias) v. q [B,Tq,H,D], k and v [B,Tk,Hkv,D] with H a multiple of Hkv; gives [B,Tq,H,D].
 * Query i stands at key position i + Tk - Tq. A query that sees no key gives zeros.
 */
export const attention = (q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): Tensor =>
  attentionWithLse(q, k, v, options).out;

/** The same with the log-sum-exp of each query's logits, f32 [B,H,Tq], through which no gradient flows. */
export function attentionWithLse(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionOptions = {},
): { out: Tensor; lse: Tensor } {
  heads4(q, 'q');
  heads4(k, 'k');
  heads4(v, 'v');
  if (show(k.shape) !== show(v.shape) || k.shape[0] !== q.shape[0] || k.shape[3] !== q.shape[3])
    throw new AnsatzError(`attention: q ${show(q.shape)}, k ${show(k.shape)} and v ${show(v.shape)} do not fit`);
  if (q.dtype !== k.dtype || q.dtype !== v.dtype) throw new AnsatzError('attention: q, k and v must share a dtype');
  const segK = options.keySegments ?? (k.shape[1] === q.shape[1] ? (options.segments ?? null) : null);
  if (options.segments && !segK) throw new AnsatzError('attention: keySegments are needed when Tq differs from Tk');
  const [out, lse] = apply(
    attentionOp,
    [q, k, v, options.bias ?? null, options.segments ?? null, segK, options.visible ?? null, options.keep ?? null],
    params(q.shape[3], options, 0, 0),
  );
  return { out, lse: lse.detach() };
}

/**
 * Self-attention on one packed tensor [B,T,H+2Hkv,D]: query heads, then key heads, then value heads. What a fused
 * projection gives, without taking it apart; the gradient comes packed as well. Gives [B,T,H,D].
 */
export function attentionPacked(qkv: Tensor, heads: number, kvHeads: number, options: AttentionOptions = {}): Tensor {
  heads4(qkv, 'qkv');
  if (qkv.shape[2] !== heads + 2 * kvHeads)
    throw new AnsatzError(`attention: ${qkv.shape[2]} packed heads are not ${heads} + 2 x ${kvHeads}`);
  const seg = options.segments ?? null;
  return apply(
    attentionOp,
    [qkv, null, null, options.bias ?? null, seg, seg, options.visible ?? null, options.keep ?? null],
    params(qkv.shape[3], options, heads, kvHeads),
  )[0];
}

interface RopeParams {
  readonly rotated: number;
  readonly interleaved: boolean;
  readonly inverse: boolean;
}

/** Inputs: x [B,T,Heads,D], cos and sin [maxT,R/2] f32, positions i32 [B,T] or null. */
const ropeOp: Op<RopeParams> = defineOp<RopeParams>({
  name: 'rope',
  infer: ([x, cos, sin, pos], p) => {
    heads4(x!, 'x');
    const [b, t, h, d] = x!.shape;
    if (show(cos!.shape) !== show(sin!.shape) || cos!.rank !== 2 || cos!.shape[1] * 2 > d)
      throw new AnsatzError(`rope: tables ${show(cos!.shape)} and ${show(sin!.shape)} do not fit heads of ${d}`);
    if (p.rotated > h) throw new AnsatzError(`rope: ${p.rotated} of ${h} heads`);
    if (pos ? show(pos.shape) !== show([b, t]) : t > cos!.shape[0])
      throw new AnsatzError(`rope: ${t} positions, tables hold ${cos!.shape[0]}`, {
        hint: 'make the position tables longer',
      });
    return [{ shape: x!.shape, dtype: x!.dtype }];
  },
  launch: ([x, cos, sin, pos], [y], p) => {
    const [b, t, h, d] = x!.shape;
    return {
      kernel: 'rope',
      args: [y.arg(), x!.arg(), cos!.arg(), sin!.arg(), pos?.arg() ?? null],
      ints: [b, t, h, p.rotated, d, 2 * cos!.shape[1], cos!.shape[0], +p.interleaved, +p.inverse, h * d, h * d],
    };
  },
  flops: ([x, cos], _, p) => x!.shape[0] * x!.shape[1] * p.rotated * cos!.shape[1] * 6,
  bytes: ([x]) => 2 * x!.size * sizeOf(x!.dtype),
  gradient: ({ inputs: [, cos, sin, pos], grads: [dy], params, needs }) => {
    if (needs(1) || needs(2)) throw new AnsatzError('rope: its tables are constants, gradients do not reach them');
    return [apply(ropeOp, [dy, cos, sin, pos], { ...params, inverse: !params.inverse })[0], null, null, null];
  },
});

/**
 * Rotates pairs of the first `rotated` heads by position (Su et al. 2021); the other heads are copied. Tables may carry
 * any factor (xPos, interpolation): y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin. Pairs are (k, k+R/2), or (2k, 2k+1)
 * when interleaved.
 */
export const rope = (
  x: Tensor,
  cos: Tensor,
  sin: Tensor,
  options: { rotated?: number; interleaved?: boolean; positions?: Tensor | null } = {},
): Tensor =>
  apply(ropeOp, [x, cos, sin, options.positions ?? null], {
    rotated: options.rotated ?? x.shape[2],
    interleaved: options.interleaved ?? false,
    inverse: false,
  })[0];
