/** Long convolutions over the pages of sequences, for decoding. */
import type { DType } from '../../backend/dtype.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import { noGrad } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { show, wantDType } from './common.ts';
import { checkRows, checkVectors, type RowIndex } from './paged-rows.ts';

interface Params {
  readonly page: number;
  readonly out: DType;
  readonly seen: number;
}

/** Inputs: pool, filter, beta?, table, sequence, position. */
const convOp = defineOp<Params>({
  name: 'paged_conv',
  infer: ([pool, h, beta, table, sequence, position], p) => {
    wantDType(h, 'f32', 'paged_conv', 'the filter');
    wantDType(beta, 'f32', 'paged_conv', 'beta');
    const width = h!.shape[h!.rank - 1];
    checkVectors('paged_conv', pool!, p.page, width);
    checkRows('paged_conv', [sequence!, position!], sequence!.size, table);
    if (h!.rank !== 2 || (beta && beta.size !== width))
      throw new AnsatzError(`paged_conv: the filter ${show(h!.shape)} must be [taps, ${width}]`);
    return [{ shape: [sequence!.size, width], dtype: p.out }];
  },
  launch: ([pool, h, beta, table, sequence, position], [out], p) => ({
    kernel: 'paged_conv',
    args: [out, pool, h, beta, table, sequence, position].map((t) => t?.arg() ?? null),
    ints: [sequence!.size, h!.shape[1], h!.shape[0], p.page, table!.shape[1]],
  }),
  flops: ([, h], [out], p) => 2 * out.size * Math.min(p.seen, h!.shape[0]),
  bytes: ([, h], [out], p) => 8 * out.size * Math.min(p.seen, h!.shape[0]) + 4 * out.size,
});

/**
 * beta v_t + sum over j of h[j] v_(t-j) for the tokens t of the rows, [R, C]. Vectors v lie in the pool, f32
 * [pages, page, C], those of the rows too; h f32 [taps, C]. `seen`: tokens before a row, for cost accounting.
 */
export const pagedConv = (
  pool: Tensor,
  h: Tensor,
  rows: RowIndex,
  o: { beta?: Tensor | null; out?: DType; seen?: number } = {},
): Tensor =>
  noGrad(() => {
    const inputs = [pool, h, o.beta ?? null, rows.table, rows.sequence, rows.position];
    return apply(convOp, inputs, { page: rows.page, out: o.out ?? 'f32', seen: o.seen ?? 1 })[0];
  });
