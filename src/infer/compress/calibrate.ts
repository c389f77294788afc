/**
 * What enters the matrices of a model while it reads text: sums over rows of x^T x, or of x^2. A captured pass, in which
 * every product with a matrix that is asked for adds to that matrix's sum; no layer knows of it.
 */
import type { Device } from '../../backend/device.ts';
import { PAD_SEGMENT, type TokenBatch } from '../../data/types.ts';
import type { Model } from '../../model/model.ts';
import { flatten, forwardContext, type ParamTree } from '../../nn/index.ts';
import {
  accumulate,
  type Compute,
  cast,
  fill,
  groupedProducts,
  matmul,
  mul,
  ne,
  noGrad,
  ones,
  record,
  reshape,
  slice,
  square,
  sum,
  Tensor,
  watch,
} from '../../tensor/index.ts';
import type { DeviceBatch } from '../../train/step.ts';

/** gram: x^T x, [K, K]. squares: sum of x^2, [K]. With E experts each has its own: [E, K, K], [E, K]. */
export type Statistic = 'gram' | 'squares';

export interface CalibrationOptions {
  readonly device: Device;
  readonly model: Model;
  readonly params: ParamTree;
  readonly compute: Compute;
  /** Parameters to look at; those that are no matrix of a product get no entry. */
  readonly paths: Iterable<string>;
  readonly statistic: Statistic;
  /** Where batches are put; taken apart by the caller. */
  readonly batch: DeviceBatch;
}

/** Rows of a batch that the output matrix is calibrated with. */
const HEAD_ROWS = 1024;

/** Ends a pass when all that was asked for has been seen. */
class Seen extends Error {}

/** The sums by path, over all batches. Matrices with the same input share a tensor. */
export async function calibrate(o: CalibrationOptions, batches: Iterable<TokenBatch>): Promise<Map<string, Tensor>> {
  const { device, model, params, batch } = o;
  const wanted = new Set(o.paths);
  const paths = new Map(
    flatten(params).flatMap(({ path, tensor }) => (wanted.has(path) ? [[tensor.storage, path] as const] : [])),
  );
  const sums = new Map<string, Tensor>();
  const byInput = new Map<Tensor['storage'], Tensor>();
  const missing = new Set(paths.values());

  const note = (op: string, [x, w, groups]: readonly (Tensor | null)[], p: unknown): void => {
    const path = w && paths.get(w.storage);
    // Of several uses of a matrix the first counts.
    if (!path || !x || sums.has(path) || (op !== 'matmul' && op !== 'grouped_matmul')) return;
    const { transA = false, compute } = p as { transA?: boolean; compute: Compute };
    if (transA || w.rank !== (op === 'matmul' ? 2 : 3)) return;
    const known = byInput.get(x.storage);
    const same = known?.shape[known.rank - 1] === x.shape[x.rank - 1] ? known : undefined;
    const total =
      same ??
      start(
        op === 'matmul' ? ofRows(masked(x, batch), o.statistic, compute) : ofGroups(x, groups!, o.statistic, compute),
      );
    byInput.set(x.storage, total);
    sums.set(path, total);
    missing.delete(path);
    if (missing.size === 0) throw new Seen();
  };
  /** A sum that keeps what is in it from replay to replay, unlike the result of an op. */
  const start = (term: Tensor): Tensor => {
    const total = Tensor.empty(device, 'f32', term.shape).keep();
    accumulate(total, term);
    return total;
  };

  model.prepare(device);
  const pass = record(device, () => {
    try {
      noGrad(() => watch(note, () => forward(o, missing)));
    } catch (error) {
      if (!(error instanceof Seen)) throw error;
    }
    return null;
  });
  try {
    for (const total of new Set(sums.values())) total.write(new Float32Array(total.size));
    for (const b of batches) {
      batch.write(b, b.targetCount);
      await pass.run();
    }
    await device.sync();
  } finally {
    pass.dispose();
  }
  return sums;
}

/** A pass, and logits for the first of its rows: only what enters the output matrix is wanted of them. */
function forward({ device, model, params, compute, batch }: CalibrationOptions, missing: ReadonlySet<string>): void {
  const c = forwardContext({ device, compute });
  const h = model.hidden(params, batch, c);
  if (missing.size === 0) return;
  const rows = masked(reshape(h, [-1, h.shape[h.rank - 1]]), batch);
  model.logits(params, slice(rows, 0, 0, Math.min(rows.shape[0], HEAD_ROWS)), c);
}

/** Rows of padding as zeros, where rows stand for the tokens of a batch. */
function masked(x: Tensor, { inputs, segments, encoder }: DeviceBatch): Tensor {
  const rows = x.shape[0];
  const used = rows === inputs.size ? segments : rows === encoder?.inputs.size ? encoder.segments : null;
  if (!used) return x;
  const real = ne(used, fill(x.device, used.shape, PAD_SEGMENT, 'i32'));
  return mul(x, cast(reshape(real, [rows, 1]), x.dtype));
}

function ofRows(x: Tensor, statistic: Statistic, compute: Compute): Tensor {
  if (statistic === 'gram') return matmul(x, x, { transA: true, compute, out: 'f32' });
  return sum(square(cast(x, 'f32')), [0]);
}

function ofGroups(x: Tensor, offsets: Tensor, statistic: Statistic, compute: Compute): Tensor {
  if (statistic === 'gram') return groupedProducts(x, x, { offsets }, compute);
  const E = offsets.size - 1;
  const one = ones(x.device, [x.shape[0], 1]);
  return reshape(groupedProducts(one, square(cast(x, 'f32')), { offsets }), [E, x.shape[1]]);
}
