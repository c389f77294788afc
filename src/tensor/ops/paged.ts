/**
 * State of sequences in pages, for decoding: keys and values with attention over them, and plain vectors a token.
 *
 * A pass computes R rows: tokens of any sequences. `Rows` says which token of which sequence each row is, and a page
 * table where the tokens of a sequence lie. Pages are written in place; what a row reads depends on its own sequence
 * alone (docs/kernels.md, `paged_*`).
 */
import type { DType } from '../../backend/dtype.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import { noGrad } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { sameShape, show, wantDType, wantFloat } from './common.ts';
import { CACHE_FORMATS, type CacheFormat, checkKeyValues, checkRows, pageBytes, type RowIndex } from './paged-rows.ts';

export { CACHE_FORMATS, type CacheFormat, pageBytes, type RowIndex } from './paged-rows.ts';

interface KvParams {
  readonly format: CacheFormat;
  readonly page: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly width: number;
  /** Elements between rows of queries, and of keys and values. */
  readonly stride: number;
  /** Where keys and values start in their tensors. */
  readonly keyAt: number;
  readonly valueAt: number;
  readonly window: number;
  readonly block: number;
  readonly back: number;
  readonly scale: number;
}

const formatCode = (f: CacheFormat): number => CACHE_FORMATS.indexOf(f);

/** Inputs: pool (updated), keys, values, table, sequence, position. */
const appendOp = defineOp<KvParams>({
  name: 'paged_append',
  inPlace: true,
  infer: ([pool, k, v, table, sequence, position], p) => {
    wantFloat(k, 'paged_append');
    if (k!.dtype !== v!.dtype) throw new AnsatzError('paged_append: keys and values must share a dtype');
    checkKeyValues('paged_append', pool!, p);
    checkRows('paged_append', [sequence!, position!], sequence!.size, table);
    return [];
  },
  launch: ([pool, k, v, table, sequence, position], _, p) => ({
    kernel: 'paged_append',
    args: [pool!.arg(), k!.arg(p.keyAt), v!.arg(p.valueAt), table!.arg(), sequence!.arg(), position!.arg()],
    ints: [sequence!.size, p.kvHeads, p.width, p.page, table!.shape[1], formatCode(p.format), p.stride, p.stride],
  }),
  flops: () => 0,
  bytes: ([, , , , sequence], _, p) => (pageBytes(p.kvHeads, p.width, p.page, p.format) / p.page) * sequence!.size * 3,
});

interface AttendParams extends KvParams {
  readonly seen: number;
  /** Whether the log-sum-exps are wanted too; the result is f32 then. */
  readonly lse: boolean;
}

/** Inputs: queries, pool, bias?, table, sequence, position, reach. Outputs: result, and log-sum-exps if wanted. */
const attendOp = defineOp<AttendParams>({
  name: 'paged_attention',
  infer: ([q, pool, bias, table, sequence, position, reach], p) => {
    wantFloat(q, 'paged_attention');
    checkKeyValues('paged_attention', pool!, p);
    const R = sequence!.size;
    checkRows('paged_attention', [sequence!, position!, reach!], R, table);
    if (bias) {
      wantDType(bias, 'f32', 'paged_attention', 'the bias');
      if (bias.rank !== 2 || bias.shape[0] !== p.heads)
        throw new AnsatzError(`paged_attention: bias ${show(bias.shape)} should be [${p.heads}, distances]`);
    }
    const shape = [R, p.heads, p.width];
    if (!p.lse) return [{ shape, dtype: q!.dtype }];
    return [
      { shape, dtype: 'f32' },
      { shape: [R, p.heads], dtype: 'f32' },
    ];
  },
  launch: ([q, pool, bias, table, sequence, position, reach], [out, lse], p) => ({
    kernel: 'paged_attention',
    args: [
      out.arg(),
      q!.arg(),
      pool!.arg(),
      bias?.arg() ?? null,
      table!.arg(),
      sequence!.arg(),
      position!.arg(),
      reach!.arg(),
      ...(lse ? [lse.arg()] : []),
    ],
    ints: [
      sequence!.size,
      p.heads,
      p.kvHeads,
      p.width,
      p.page,
      table!.shape[1],
      formatCode(p.format),
      p.stride,
      p.heads * p.width,
      p.window,
      bias?.shape[1] ?? 0,
      ...[p.block, p.back],
    ],
    floats: [p.scale],
  }),
  flops: ([, , , , sequence], _, p) => 4 * sequence!.size * p.heads * p.width * p.seen,
  bytes: ([, , , , sequence], [out], p) =>
    (pageBytes(p.kvHeads, p.width, p.page, p.format) / p.page) * sequence!.size * p.seen + out.size * 4,
});

export interface PagedOptions {
  readonly heads: number;
  readonly kvHeads: number;
  readonly width: number;
  readonly format: CacheFormat;
  /** A row sees keys less than this far back; 0: all. */
  readonly window?: number;
  /** A row sees keys of one block of so many tokens: the one `back` before its own (up to itself); 0: all. */
  readonly block?: number;
  readonly back?: number;
  /** Factor on q.k; by default 1/sqrt(width). */
  readonly scale?: number;
  /** f32 [heads, distances]: added to logits by distance, the last entry for distance 0; farther ones take the first. */
  readonly bias?: Tensor | null;
  /** Keys that a row sees on average: for cost accounting alone. */
  readonly seen?: number;
}

const kvParams = (o: PagedOptions, page: number, stride: number, keyAt: number, valueAt: number): KvParams => ({
  format: o.format,
  page,
  heads: o.heads,
  kvHeads: o.kvHeads,
  width: o.width,
  stride,
  keyAt,
  valueAt,
  window: o.window ?? 0,
  block: o.block ?? 0,
  back: o.back ?? 0,
  scale: o.scale ?? 1 / Math.sqrt(o.width),
});

/** Puts keys and values, f32 or bf16 [R, kvHeads, width], into the pages of the rows' tokens. */
export function pagedAppend(pool: Tensor, k: Tensor, v: Tensor, rows: RowIndex, o: PagedOptions): void {
  const params = kvParams(o, rows.page, o.kvHeads * o.width, 0, 0);
  noGrad(() => apply(appendOp, [pool, k, v, rows.table, rows.sequence, rows.position], params));
}

/** Attention of queries [R, heads, width] to what their sequences have in `pool`. Gives [R, heads, width]. */
export function pagedAttention(q: Tensor, pool: Tensor, rows: RowIndex, o: PagedOptions): Tensor {
  return attend(q, pool, rows, o, false)[0];
}

function attend(q: Tensor, pool: Tensor, rows: RowIndex, o: PagedOptions, lse: boolean): Tensor[] {
  const params = { ...kvParams(o, rows.page, o.heads * o.width, 0, 0), seen: o.seen ?? 1, lse };
  const { table, sequence, position, reach } = rows;
  return noGrad(() => apply(attendOp, [q, pool, o.bias ?? null, table, sequence, position, reach], params));
}

const mergeOp = defineOp<{ readonly out: DType }>({
  name: 'merge_attention',
  infer: ([a, b, lseA, lseB], p) => {
    for (const t of [a, b]) wantFloat(t, 'merge_attention');
    for (const t of [lseA, lseB]) wantDType(t, 'f32', 'merge_attention', 'log-sum-exps');
    if (!sameShape(a!.shape, b!.shape) || a!.dtype !== b!.dtype || lseA!.size !== lseB!.size || a!.size % lseA!.size)
      throw new AnsatzError(`merge_attention: ${show(a!.shape)} and ${show(b!.shape)} do not fit ${show(lseA!.shape)}`);
    return [{ shape: a!.shape, dtype: p.out }];
  },
  launch: ([a, b, lseA, lseB], [out]) => ({
    kernel: 'merge_attention',
    args: [out.arg(), a!.arg(), b!.arg(), lseA!.arg(), lseB!.arg()],
    ints: [lseA!.size, a!.size / lseA!.size],
  }),
  flops: ([a]) => 4 * a!.size,
});

/** What one of two attentions looks at: queries [R, heads, width] over a pool. */
export interface PagedPart {
  readonly q: Tensor;
  readonly pool: Tensor;
  readonly rows: RowIndex;
  readonly options: PagedOptions;
}

/** One softmax over the keys of two attentions. Gives [R, heads, width]. */
export function pagedAttentionOfTwo(first: PagedPart, second: PagedPart): Tensor {
  const [a, lseA] = attend(first.q, first.pool, first.rows, first.options, true);
  const [b, lseB] = attend(second.q, second.pool, second.rows, second.options, true);
  return noGrad(() => apply(mergeOp, [a, b, lseA, lseB], { out: first.q.dtype })[0]);
}

/**
 * Both on one packed tensor [R, heads + 2 kvHeads, width]: the rows' keys and values join the pages, then every row
 * attends to what its sequence has up to its reach.
 */
export function pagedSelfAttention(qkv: Tensor, pool: Tensor, rows: RowIndex, o: PagedOptions): Tensor {
  const stride = (o.heads + 2 * o.kvHeads) * o.width;
  const at = o.heads * o.width;
  const params = kvParams(o, rows.page, stride, at, at + o.kvHeads * o.width);
  const { table, sequence, position, reach } = rows;
  return noGrad(() => {
    apply(appendOp, [pool, qkv, qkv, table, sequence, position], params);
    const inputs = [qkv, pool, o.bias ?? null, table, sequence, position, reach];
    return apply(attendOp, inputs, { ...params, seen: o.seen ?? 1, lse: false })[0];
  });
}
