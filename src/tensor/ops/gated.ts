/** Gated feed-forward halves (Shazeer 2020): act(x[:, :h]) x[:, h:] of one packed projection. */
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import type { Tensor } from '../tensor.ts';
import { like, wantFloat } from './common.ts';

const codes = { silu: 0, gelu: 1, relu: 2, sigmoid: 3, identity: 4, gelu_erf: 5 } as const;
export type GateActivation = keyof typeof codes;

const dims = (x: Tensor): [number, number] => {
  const h = x.shape[x.rank - 1] / 2;
  return [h === 0 ? 0 : x.size / (2 * h), h];
};

const bwd = defineOp<{ act: GateActivation }>({
  name: 'glu_bwd',
  infer: (inputs) => like(inputs),
  launch: ([x, dy], [dx], p) => ({
    kernel: 'glu_bwd',
    args: [dx.arg(), x!.arg(), dy!.arg()],
    ints: [...dims(x!), codes[p.act]],
  }),
  flops: ([x]) => 4 * x!.size,
});

const op = defineOp<{ act: GateActivation }>({
  name: 'glu',
  infer: ([x]) => {
    wantFloat(x, 'glu');
    const d = x!.shape[x!.rank - 1];
    if (d % 2) throw new AnsatzError(`glu: width ${d} does not split into a gate and a value`);
    return [{ shape: [...x!.shape.slice(0, -1), d / 2], dtype: x!.dtype }];
  },
  launch: ([x], [y], p) => ({ kernel: 'glu', args: [y.arg(), x!.arg()], ints: [...dims(x!), codes[p.act]] }),
  flops: (_, [y]) => 4 * y.size,
  gradient: ({ inputs: [x], grads: [dy], params }) => [apply(bwd, [x, dy], params)[0]],
});

/** x [..., 2h] -> [..., h]. */
export const glu = (x: Tensor, act: GateActivation = 'silu'): Tensor => apply(op, [x], { act })[0];
