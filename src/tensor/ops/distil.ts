/** A student's loss against targets and a teacher's distribution (Hinton et al. 2015), with its gradient. */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import type { Tensor } from '../tensor.ts';
import { show, wantDType } from './common.ts';
import { IGNORE } from './loss.ts';

export interface DistilOptions {
  /** Weight of the cross-entropy with the targets. */
  readonly hard: number;
  /** Weight of the divergence from the teacher, which is multiplied by temperature^2. */
  readonly soft: number;
  readonly temperature: number;
  /** Coefficient of lse^2 in the cross-entropy. */
  readonly zLoss?: number;
  /** Tokens that both have: ids below this. By default the fewer of both vocabularies. */
  readonly shared?: number;
}

/** Inputs: student [rows, V], teacher [rows, Vt], targets i32 [rows], rowscale [rows]. */
const distilOp = defineOp<Required<DistilOptions>>({
  name: 'distil_loss',
  infer: ([student, teacher, target, rowscale], p) => {
    for (const t of [student, teacher, rowscale]) wantDType(t, 'f32', 'distil_loss', 'logits and row scales');
    wantDType(target, 'i32', 'distil_loss', 'targets');
    const [rows, V] = student!.shape;
    const fits = student!.rank === 2 && teacher!.rank === 2 && teacher!.shape[0] === rows;
    if (!fits || target!.size !== rows || rowscale!.size !== rows || p.shared > Math.min(V, teacher!.shape[1]))
      throw new AnsatzError(
        `distil_loss: logits ${show(student!.shape)} and ${show(teacher!.shape)}, targets ${show(target!.shape)} and ${p.shared} shared tokens do not fit`,
      );
    return [
      { shape: [rows], dtype: 'f32' },
      { shape: [rows], dtype: 'f32' },
      { shape: [rows, V], dtype: 'f32' },
    ];
  },
  launch: ([student, teacher, target, rowscale], [ce, kl, dlogits], p) => ({
    kernel: 'distil_loss',
    args: [ce, kl, dlogits, student!, teacher!, target!, rowscale!].map((t) => t.arg()),
    ints: [...student!.shape, teacher!.shape[1], p.shared, IGNORE],
    floats: [p.hard, p.soft, p.temperature, p.zLoss],
  }),
  flops: ([student, teacher]) => 12 * student!.size + 6 * teacher!.size,
});

/**
 * For each row, cross-entropy with the target and KL(softmax(teacher / T) || softmax(student / T)); and the gradient of
 * sum(rowscale (hard ce + soft T^2 kl)) by the student's logits. Rows whose target is IGNORE give 0.
 */
export function distilLoss(
  student: Tensor,
  teacher: Tensor,
  targets: Tensor,
  rowscale: Tensor,
  { hard, soft, temperature, zLoss = 0, shared = Math.min(student.shape[1], teacher.shape[1]) }: DistilOptions,
): { ce: Tensor; kl: Tensor; gradient: Tensor } {
  const p = { hard, soft, temperature, zLoss, shared };
  const [ce, kl, gradient] = apply(distilOp, [student, teacher, targets, rowscale], p);
  return { ce, kl, gradient };
}
