/**
 * How a model's layers use its parameters, found by looking: the spec is run on a device without values, and the kernel
 * calls say who is multiplied by, who is looked up in, who is anything else. So no layer has to say which of its weights
 * may be kept in fewer bits.
 */
import { MetaDevice } from '../backend/meta/device.ts';
import type { Model } from '../model/model.ts';
import { flatten, forwardContext, initialise } from '../nn/index.ts';
import { noGrad, scope, trace, zeros } from '../tensor/index.ts';

/**
 * matrix: rows are multiplied by it, y = x W^T. table: rows are read from it by id. shared: both (a tied embedding).
 * experts: the same as matrix, one for each group of rows; columns: the same with outputs in columns. factor: the factor E
 * of a factored matrix; gate: its factor D. kernel: of a convolution over modules. other: anything else.
 */
export type WeightUse = 'matrix' | 'table' | 'shared' | 'experts' | 'columns' | 'factor' | 'gate' | 'kernel' | 'other';

/** Uses of parameters by path; those that a pass over text does not touch are missing. */
export function weightUses(model: Model): Map<string, WeightUse> {
  const device = new MetaDevice();
  return scope(() => {
    const params = initialise(model, device, 0);
    model.prepare(device);
    const paths = new Map(flatten(params).map(({ path, tensor }) => [tensor.storage.memory.id, path]));
    const ids = zeros(device, [1, 8], 'i32');
    const encoder = model.encoder ? { inputs: ids, segments: ids, positions: ids } : null;
    const { calls } = trace(() =>
      noGrad(() => {
        const c = forwardContext({ device, compute: 'bf16' });
        const h = model.hidden(params, { inputs: ids, segments: ids, positions: ids, encoder }, c);
        return model.logits(params, h, c);
      }),
    );
    const uses = new Map<string, WeightUse>();
    for (const call of calls)
      call.args.forEach((arg, k) => {
        const path = arg && paths.get(arg.memory.id);
        if (!path) return;
        const use = useIn(call.kernel, k, call.ints);
        const before = uses.get(path);
        const both = before && before !== use && before !== 'other' && use !== 'other';
        const kinds = new Set([before, use]);
        const shared = both && kinds.has('table') && (kinds.has('matrix') || kinds.has('shared'));
        uses.set(path, !before || before === use ? use : shared ? 'shared' : 'other');
      });
    return uses;
  });
}

function useIn(kernel: string, argument: number, ints: readonly number[]): WeightUse {
  // batch, M, N, K, transA, transB, three strides, compute. Products that insist on f32 (routers, controllers) choose by
  // small differences: their weights stay as they are.
  if (kernel === 'matmul' && argument === 2 && ints[0] === 1 && ints[5] === 1 && ints[9] === 1) return 'matrix';
  if (kernel === 'embedding' && argument === 1) return 'table';
  // rows, groups, N, K, transB, most, compute
  if (kernel === 'grouped_matmul' && argument === 2 && ints[6] === 1) return ints[4] === 1 ? 'experts' : 'columns';
  if (kernel === 'factored_linear' && argument === 3) return 'factor';
  if (kernel === 'factored_linear' && argument === 2) return 'gate';
  if (kernel === 'module_conv' && argument === 2) return 'kernel';
  return 'other';
}
