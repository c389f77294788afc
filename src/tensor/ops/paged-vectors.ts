/** Plain vectors of the tokens of sequences, in pages. */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import { noGrad } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { show, wantDType } from './common.ts';
import { checkRows, checkVectors, type RowIndex } from './paged-rows.ts';
import { reshape } from './shape.ts';

interface VectorParams {
  readonly page: number;
  readonly back: number;
  readonly count: number;
}

/** Inputs: pool f32 [pages, page, width] (updated), x [R, width], table, sequence, position. */
const writeOp = defineOp<VectorParams>({
  name: 'paged_write',
  inPlace: true,
  infer: ([pool, x, table, sequence, position], p) => {
    checkVectors('paged_write', pool!, p.page);
    checkRows('paged_write', [sequence!, position!], sequence!.size, table);
    if (x!.size !== sequence!.size * pool!.shape[2])
      throw new AnsatzError(`paged_write: ${show(x!.shape)} does not fill ${sequence!.size} rows of ${pool!.shape[2]}`);
    return [];
  },
  launch: ([pool, x, table, sequence, position], _, p) => ({
    kernel: 'paged_write',
    args: [pool!.arg(), x!.arg(), table!.arg(), sequence!.arg(), position!.arg()],
    ints: [sequence!.size, pool!.shape[2], p.page, table!.shape[1]],
  }),
  flops: () => 0,
  bytes: ([, x]) => 2 * x!.size * 4,
});

/** Inputs: pool, table, sequence, position. */
const readOp = defineOp<VectorParams>({
  name: 'paged_read',
  infer: ([pool, table, sequence, position], p) => {
    checkVectors('paged_read', pool!, p.page);
    checkRows('paged_read', [sequence!, position!], sequence!.size, table);
    if (p.count < 1 || p.back < p.count - 1)
      throw new AnsatzError(`paged_read: ${p.count} vectors from ${p.back} tokens back on lie ahead of the row`);
    return [{ shape: [sequence!.size, p.count, pool!.shape[2]], dtype: 'f32' }];
  },
  launch: ([pool, table, sequence, position], [out], p) => ({
    kernel: 'paged_read',
    args: [out.arg(), pool!.arg(), table!.arg(), sequence!.arg(), position!.arg()],
    ints: [sequence!.size, pool!.shape[2], p.page, table!.shape[1], p.back, p.count],
  }),
  flops: () => 0,
  bytes: (_, [out]) => 2 * out.size * 4,
});

/** Stores a vector of each row's token. */
export const pagedWrite = (pool: Tensor, x: Tensor, rows: RowIndex): void => {
  const params = { page: rows.page, back: 0, count: 1 };
  noGrad(() => apply(writeOp, [pool, x, rows.table, rows.sequence, rows.position], params));
};

/** Inputs: x, pool, table, sequence, position, reach. */
const chooseOp = defineOp<VectorParams>({
  name: 'paged_choose',
  infer: ([x, pool, table, sequence, position, reach], p) => {
    wantDType(x, 'f32', 'paged_choose', 'x');
    checkVectors('paged_choose', pool!, p.page, x!.shape[1]);
    checkRows('paged_choose', [sequence!, position!, reach!], x!.shape[0], table);
    return [{ shape: x!.shape, dtype: 'f32' }];
  },
  launch: ([x, pool, table, sequence, position, reach], [out], p) => ({
    kernel: 'paged_choose',
    args: [out, x, pool, table, sequence, position, reach].map((t) => t!.arg()),
    ints: [...x!.shape, p.page, table!.shape[1]],
  }),
  flops: () => 0,
});

/** x f32 [R, width], or the pool's vector where one lies at the row's position: up to its reach, in its sequence. */
export const pagedChoose = (x: Tensor, pool: Tensor, rows: RowIndex): Tensor =>
  noGrad(() => {
    const inputs = [x, pool, rows.table, rows.sequence, rows.position, rows.reach];
    return apply(chooseOp, inputs, { page: rows.page, back: 0, count: 1 })[0];
  });

const read = (pool: Tensor, rows: RowIndex, back: number, count: number): Tensor =>
  noGrad(() => apply(readOp, [pool, rows.table, rows.sequence, rows.position], { page: rows.page, back, count })[0]);

/** The vectors `back` tokens before the rows' own, f32 [R, width]; zeros before a sequence's start. */
export const pagedRead = (pool: Tensor, rows: RowIndex, back: number): Tensor =>
  reshape(read(pool, rows, back, 1), [rows.sequence.size, pool.shape[2]]);

/** The vectors of the rows' last `count` tokens, oldest first, f32 [R, count, width]; zeros before a sequence's start. */
export const pagedRecent = (pool: Tensor, rows: RowIndex, count: number): Tensor => read(pool, rows, count - 1, count);
