/**
 * Rows that are made as they are multiplied by weights in blocks: scaled by a factor each, or the taps of a convolution.
 * What they stand for is never stored. For inference, like all of quant.ts.
 */
import { blockCode, type DType, isBlock } from '../../backend/dtype.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp, type Inputs } from '../op.ts';
import { gradEnabled } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { sameShape, show, wantDType, wantFloat } from './common.ts';
import type { Compute } from './matmul.ts';

interface RowParams {
  readonly compute: Compute;
  readonly out: DType;
}

const flag = (compute: Compute): number => (compute === 'bf16' ? 1 : 0);
const codeOf = (w: Tensor): number => blockCode[w.dtype as keyof typeof blockCode];

function refuseGradient(op: string, inputs: Inputs): void {
  if (gradEnabled() && inputs.some((t) => t?.requiresGrad))
    throw new AnsatzError(`${op}: there is no gradient through weights in blocks`, {
      hint: 'run inference inside noGrad(), or train with the f32 weights',
    });
}

/** Inputs: x [R, d], E in blocks [M, d], D [S, d], bias [S M] or null. */
const factoredOp = defineOp<RowParams>({
  name: 'quant_factored',
  blocks: true,
  infer: ([x, E, D, bias], p) => {
    const name = 'factored_linear';
    for (const t of [x, D, bias]) wantFloat(t, name);
    const [R, d] = x!.shape;
    if (x!.rank !== 2 || D!.rank !== 2 || E!.rank !== 2 || D!.shape[1] !== d || E!.shape[1] !== d)
      throw new AnsatzError(
        `${name}: x ${show(x!.shape)}, D ${show(D!.shape)} and ${E!.dtype} E ${show(E!.shape)} do not fit`,
      );
    const n = D!.shape[0] * E!.shape[0];
    if (bias && bias.size !== n) throw new AnsatzError(`${name}: bias ${show(bias.shape)} for ${n} columns`);
    return [{ shape: [R, n], dtype: p.out }];
  },
  launch: ([x, E, D, bias], [y], p) => ({
    kernel: 'quant_factored',
    args: [y, x, E, D, bias].map((t) => t?.arg() ?? null),
    ints: [x!.shape[0], D!.shape[0], ...E!.shape, codeOf(E!), flag(p.compute)],
    floats: [1],
  }),
  flops: ([x, E, D]) => 2 * x!.shape[0] * D!.shape[0] * E!.size + x!.size * D!.shape[0],
});

/** factoredLinear() with E in blocks: every module's row is x times its row of D. */
export function quantFactored(x: Tensor, D: Tensor, E: Tensor, bias: Tensor | null, p: RowParams): Tensor {
  const inputs = [x, E, D, bias];
  refuseGradient('factored_linear', inputs);
  return apply(factoredOp, inputs, p)[0];
}

/** Inputs: x [R, reach, S, M], then for each part w in blocks [M, reach J M] and bias f32 [M] or null. */
const convOp = defineOp<RowParams>({
  name: 'quant_module_conv',
  blocks: true,
  infer: ([x, ...parts], p) => {
    const name = 'module_conv_rows';
    wantFloat(x, name);
    if (x!.rank !== 4) throw new AnsatzError(`${name}: x [rows, reach, modules, width], not ${show(x!.shape)}`);
    const [R, reach, S, M] = x!.shape;
    for (let k = 0; k < parts.length; k += 2) {
      const [w, bias] = [parts[k]!, parts[k + 1]];
      wantDType(bias, 'f32', name, 'the bias');
      const J = w.shape[1] / (reach * M);
      if (!isBlock(w.dtype) || w.rank !== 2 || w.shape[0] !== M || J % 2 !== 1 || w.dtype !== parts[0]!.dtype)
        throw new AnsatzError(`${name}: x ${show(x!.shape)} and ${w.dtype} taps ${show(w.shape)} do not fit`);
      if (bias && !sameShape(bias.shape, [M]))
        throw new AnsatzError(`${name}: bias ${show(bias.shape)} for ${M} channels`);
    }
    return [{ shape: [R, parts.length / 2, S, M], dtype: p.out }];
  },
  launch: ([x, ...parts], [y], p) => {
    const [R, reach, S, M] = x!.shape;
    const taps = parts.filter((_, k) => k % 2 === 0).map((w) => w!.shape[1] / (reach * M));
    return {
      kernel: 'quant_module_conv',
      args: [y, x, ...parts].map((t) => t?.arg() ?? null),
      ints: [R, S, M, reach, codeOf(parts[0]!), flag(p.compute), taps.length, ...taps],
    };
  },
  flops: ([x, ...parts]) => parts.reduce((n, w, k) => n + (k % 2 ? 0 : 2 * x!.shape[0] * x!.shape[2] * w!.size), 0),
});

/** A convolution's taps in blocks [M, reach J M] (of w [M, reach, J, M], flattened), and its bias. */
export interface ConvPart {
  readonly w: Tensor;
  readonly bias: Tensor | null;
}

/**
 * The last step of causal convolutions over tokens and modules (moduleConv()) of the same input, up to three of them:
 * x [R, reach, S, M], the last `reach` tokens of each row -> [R, parts, S, M].
 * @throws AnsatzError where taps do not fit, or gradients would be needed.
 */
export function moduleConvRows(
  x: Tensor,
  parts: readonly ConvPart[],
  options: { compute?: Compute; out?: DType } = {},
): Tensor {
  if (parts.length < 1 || parts.length > 3)
    throw new AnsatzError(`module_conv_rows: 1 to 3 parts, not ${parts.length}`);
  const inputs = [x, ...parts.flatMap(({ w, bias }) => [w, bias])];
  refuseGradient('module_conv_rows', inputs);
  return apply(convOp, inputs, { compute: options.compute ?? 'f32', out: options.out ?? x.dtype })[0];
}
