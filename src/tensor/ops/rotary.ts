/** Rotary positions with tables of their own for queries and for keys: factors that grow with position cancel in q.k. */
import { sizeOf } from '../../backend/dtype.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp, type Op } from '../op.ts';
import type { Tensor } from '../tensor.ts';
import { sameShape, show, wantFloat } from './common.ts';

export interface RotaryTable {
  /** f32 [positions, R/2], any factor included. */
  readonly cos: Tensor;
  readonly sin: Tensor;
}

interface Params {
  readonly heads: number;
  readonly kvHeads: number;
  readonly interleaved: boolean;
  readonly inverse: boolean;
}

/** Inputs: x [B,T,heads+kvHeads+rest,D], cos and sin for queries, cos and sin for keys, positions i32 [B,T] or null. */
const ropePairOp: Op<Params> = defineOp<Params>({
  name: 'rope_pair',
  infer: ([x, qcos, qsin, kcos, ksin, pos], p) => {
    wantFloat(x, 'rope_pair');
    if (x!.rank !== 4 || x!.shape[2] < p.heads + p.kvHeads)
      throw new AnsatzError(`rope_pair: ${p.heads} + ${p.kvHeads} heads of ${show(x!.shape)}`);
    const [b, t, , d] = x!.shape;
    for (const table of [qsin, kcos, ksin])
      if (!sameShape(table!.shape, qcos!.shape)) throw new AnsatzError('rope_pair: tables differ in shape');
    if (qcos!.rank !== 2 || 2 * qcos!.shape[1] > d)
      throw new AnsatzError(`rope_pair: tables ${show(qcos!.shape)} do not fit heads of ${d}`);
    if (pos ? show(pos.shape) !== show([b, t]) : t > qcos!.shape[0])
      throw new AnsatzError(`rope_pair: ${t} positions, tables hold ${qcos!.shape[0]}`, {
        hint: 'make the position tables longer',
      });
    return [{ shape: x!.shape, dtype: x!.dtype }];
  },
  launch: ([x, qcos, qsin, kcos, ksin, pos], [y], p) => {
    const [b, t, all, d] = x!.shape;
    const [rows, half] = qcos!.shape;
    const call = (from: number, heads: number, rotated: number, cos: Tensor, sin: Tensor) => ({
      kernel: 'rope',
      args: [y.arg(from * d), x!.arg(from * d), cos.arg(), sin.arg(), pos?.arg() ?? null],
      ints: [b, t, heads, rotated, d, 2 * half, rows, +p.interleaved, +p.inverse, all * d, all * d],
    });
    return [call(0, p.heads, p.heads, qcos!, qsin!), call(p.heads, all - p.heads, p.kvHeads, kcos!, ksin!)];
  },
  flops: ([x, cos], _, p) => x!.shape[0] * x!.shape[1] * (p.heads + p.kvHeads) * cos!.shape[1] * 6,
  bytes: ([x]) => 2 * x!.size * sizeOf(x!.dtype),
  gradient: ({ inputs: [, ...rest], grads: [dy], params }) => [
    apply(ropePairOp, [dy, ...rest], { ...params, inverse: !params.inverse })[0],
    ...rest.map(() => null),
  ],
});

/** Turns the first `heads` heads by one pair of tables and the next `kvHeads` by another; the rest is copied. */
export const ropePair = (
  x: Tensor,
  query: RotaryTable,
  key: RotaryTable,
  options: { heads: number; kvHeads: number; interleaved?: boolean; positions?: Tensor | null },
): Tensor =>
  apply(ropePairOp, [x, query.cos, query.sin, key.cos, key.sin, options.positions ?? null], {
    heads: options.heads,
    kvHeads: options.kvHeads,
    interleaved: options.interleaved ?? false,
    inverse: false,
  })[0];
