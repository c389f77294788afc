/** Tokens drawn from rows of logits where these lie, so that a vocabulary of numbers need not leave the device for each. */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import { noGrad } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { show, wantDType } from './common.ts';

/** Inputs: logits f32 [R, V], temperature f32 [R], number i32 [R], never i32 [R, 2 N]. */
const drawOp = defineOp<Record<string, never>>({
  name: 'draw_rows',
  infer: ([x, temperature, number, never]) => {
    for (const t of [x, temperature]) wantDType(t, 'f32', 'draw_rows', 'logits and temperatures');
    for (const t of [number, never]) wantDType(t, 'i32', 'draw_rows', 'numbers and ranges');
    const [R] = x!.shape;
    if (x!.rank !== 2 || temperature!.size !== R || number!.size !== R || never!.shape[0] !== R || never!.shape[1] % 2)
      throw new AnsatzError(
        `draw_rows: logits ${show(x!.shape)}, temperatures ${show(temperature!.shape)} and ranges ${show(never!.shape)} do not fit`,
      );
    return [{ shape: [R], dtype: 'i32' }];
  },
  launch: ([x, temperature, number, never], [token]) => ({
    kernel: 'draw_rows',
    args: [token, x, temperature, number, never].map((t) => t!.arg()),
    ints: [...x!.shape, never!.shape[1] / 2],
  }),
  flops: ([x]) => 15 * x!.size,
});

/**
 * For each row of logits [R, V] the likeliest token (temperature 0; the lower of equals), or one drawn from
 * softmax(x / temperature): the first whose cumulative probability, in the order of tokens, exceeds number / 2^32. -1 where
 * nothing is possible. `never` [R, 2 N] has ranges of tokens that are not drawn, the first one and the one after the last;
 * unused ranges are empty and come last. NaN is never drawn. i32 [R].
 */
export const drawRows = (x: Tensor, temperature: Tensor, number: Tensor, never: Tensor): Tensor =>
  noGrad(() => apply(drawOp, [x, temperature, number, never], {})[0]);
