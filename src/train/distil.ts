/**
 * Training a student on a teacher's distributions beside the targets (Hinton et al. 2015; DistilBERT, Sanh et al. 2019):
 * (1 - lambda) cross-entropy + lambda T^2 KL(teacher at temperature T || student). The teacher's pass is part of the same
 * captured step, without gradients.
 */
import type { Device } from '../backend/device.ts';
import type { Batch, Model } from '../model/model.ts';
import { type ForwardContext, flatten, forwardContext, type ParamTree } from '../nn/index.ts';
import {
  add,
  addScaled,
  affine,
  concat,
  custom,
  distilLoss,
  gradEnabled,
  mul,
  noGrad,
  pullBack,
  recording,
  reshape,
  scaleBy,
  slice,
  sum,
  type Tensor,
} from '../tensor/index.ts';

/** What a step minimises: a scalar of parameters and a batch. */
export type LossOf = (params: ParamTree, batch: Batch, c: ForwardContext) => { readonly total: Tensor };

export interface Teacher {
  readonly model: Model;
  readonly params: ParamTree;
}

export interface DistilOptions {
  /** Weight of the teacher; the targets get the rest. */
  readonly lambda: number;
  readonly temperature: number;
  /** Ids below this mean the same to both. */
  readonly shared: number;
  /** Logits of both that exist at a time; by default as many as products of decent size need. */
  readonly logits?: number;
}

/** Logits of student and teacher that exist at a time, if at least 64 rows have room in it. */
const LOGITS = 8 << 20;

/** The loss of a student whose batches a teacher reads too. */
export function distillation(device: Device, student: Model, teacher: Teacher, o: DistilOptions): LossOf {
  teacher.model.prepare(device);
  return (params, batch, c) => {
    const plain = forwardContext({ device, compute: c.compute });
    const taught = noGrad(() => teacher.model.hidden(teacher.params, batch, plain));
    const h = student.hidden(params, batch, c);
    let total = headLoss(student, params, h, { ...teacher, h: taught, context: plain }, batch, c, o);
    for (const term of c.losses.values()) total = add(total, c.share === 1 ? term : affine(term, c.share, 0));
    return { total };
  };
}

/**
 * The loss of final hidden states. Logits of a few rows are made, used up for the loss and its gradients, and dropped: as
 * in the fused cross-entropy, those of all rows never exist.
 */
function headLoss(
  student: Model,
  params: ParamTree,
  hidden: Tensor,
  teacher: Teacher & { readonly h: Tensor; readonly context: ForwardContext },
  batch: Batch,
  c: ForwardContext,
  { lambda, temperature, shared, logits: most }: DistilOptions,
): Tensor {
  const rowsOf = (t: Tensor): Tensor => reshape(t, [-1, t.shape[t.rank - 1]]);
  const [h, th] = [rowsOf(hidden), noGrad(() => rowsOf(teacher.h))];
  const n = h.shape[0];
  const [targets, weights] = [reshape(batch.targets, [n]), reshape(batch.weights, [n])];
  const wide = student.spec.vocab + teacher.model.spec.vocab;
  const step = Math.min(n, Math.max(1, Math.floor((most ?? Math.max(LOGITS, 64 * wide)) / wide)));
  const zLoss = student.spec.zLoss;
  const options = { hard: 1 - lambda, soft: lambda, temperature, shared, zLoss };
  const learns = gradEnabled() && h.requiresGrad;
  const leaves = learns ? flatten(params).flatMap(({ tensor }) => (tensor.requiresGrad ? [tensor] : [])) : [];
  const parts: { loss: Tensor; dh: Tensor | null }[] = [];
  let sums: (Tensor | null)[] = leaves.map(() => null);
  noGrad(() => {
    for (let at = 0; at < n; at += step) {
      const piece = (t: Tensor): Tensor => (step === n ? t : slice(t, 0, at, Math.min(n, at + step)));
      const x = piece(h).detach();
      x.requiresGrad = learns;
      const logits = learns ? recording(() => student.logits(params, x, c)) : student.logits(params, x, c);
      const theirs = teacher.model.logits(teacher.params, piece(th), teacher.context);
      const { ce, kl, gradient } = distilLoss(logits, theirs, piece(targets), piece(weights), options);
      const rows = addScaled(ce, kl, options.hard, lambda * temperature ** 2);
      const loss = sum(mul(rows, piece(weights)));
      const [dh = null, ...rest] = learns ? pullBack([logits], [gradient], [x, ...leaves], [null, ...sums]) : [];
      if (learns) sums = rest;
      parts.push({ loss, dh });
    }
  });
  // Parameters that the head does not use got nothing.
  const used = leaves.map((t, k) => ({ t, sum: sums[k] })).filter((x) => x.sum !== null);
  const [total] = custom(
    'distillation',
    [h, ...used.map(({ t }) => t)],
    () => [parts.map((p) => p.loss).reduce((a, b) => add(a, b))],
    ({ grads: [g] }) => [
      scaleBy(
        parts.length === 1
          ? parts[0].dh!
          : concat(
              parts.map((p) => p.dh!),
              0,
            ),
        g!,
      ),
      ...used.map((x) => scaleBy(x.sum!, g!)),
    ],
  );
  return total;
}
