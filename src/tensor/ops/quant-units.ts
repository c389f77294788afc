/**
 * Feed-forward layers of which a row uses one unit a block, for decoding (docs/quantised.md): units as records, so that a
 * chosen unit is one run of memory; the choice; and the layer itself. No gradients: training uses blockGate().
 */
import { type DType, sizeOf } from '../../backend/dtype.ts';
import { AnsatzError } from '../../backend/errors.ts';
import { apply, defineOp } from '../op.ts';
import { gradEnabled } from '../tape.ts';
import type { Tensor } from '../tensor.ts';
import { cast } from './binary.ts';
import { sameShape, show, wantDType, wantFloat } from './common.ts';
import { pad, permute, reshape } from './shape.ts';

/** How the values of units are kept; q8 and q4 in groups of 32, as in weights in blocks. */
export type UnitType = 'q8' | 'q4' | 'bf16' | 'f32';
const unitCode: Record<UnitType, number> = { q8: 0, q4: 1, bf16: 2, f32: 3 };
const valueBytes: Record<UnitType, number> = { q8: 1 + 2 / 32, q4: 0.5 + 2 / 32, bf16: 2, f32: 4 };

/** Bytes of a record: one unit's row of the first matrix, of the gate, and its column of the second. */
export function unitBytes(type: UnitType, width: number, gated: boolean): number {
  const part = Math.ceil((Math.ceil(width / 64) * 64 * valueBytes[type]) / 64) * 64;
  return part * (gated ? 3 : 2);
}

interface PackParams {
  readonly type: UnitType;
  readonly columns: boolean;
}

/** Inputs: up [F, d], gate [F, d] or null, down [F, d] or (columns) [d, F]. */
const packOp = defineOp<PackParams>({
  name: 'pack_units',
  infer: ([up, gate, down], p) => {
    for (const t of [up, gate, down]) wantFloat(t, 'pack_units');
    const [F, d] = up!.shape;
    const other = p.columns ? [d, F] : [F, d];
    if (up!.rank !== 2 || !sameShape(down!.shape, other) || (gate && !sameShape(gate.shape, up!.shape)))
      throw new AnsatzError(
        `pack_units: up ${show(up!.shape)}, ${gate ? `gate ${show(gate.shape)}, ` : ''}down ${show(down!.shape)} do not fit`,
      );
    return [{ shape: [F, unitBytes(p.type, d, gate !== null)], dtype: 'u8' }];
  },
  launch: ([up, gate, down], [records], p) => ({
    kernel: 'unit_pack',
    args: [records.arg(), up!.arg(), gate?.arg() ?? null, down!.arg()],
    ints: [...up!.shape, unitCode[p.type], +p.columns],
  }),
  flops: ([up]) => up!.size,
});

/**
 * Records u8 [F, unitBytes] of F units.
 * @param down [F, d], or with `columns` [d, F] as a matrix from units to the width stands
 */
export const packUnits = (
  up: Tensor,
  down: Tensor,
  options: { type: UnitType; gate?: Tensor | null; columns?: boolean },
): Tensor =>
  apply(packOp, [up, options.gate ?? null, down], { type: options.type, columns: options.columns ?? false })[0];

interface UnitsParams {
  readonly type: UnitType;
  readonly block: number;
  readonly gated: boolean;
  readonly alpha: number;
  readonly out: DType;
}

/** Inputs: x [rows, d], choice i32 [rows, A], records u8, bias, gateBias [F], weight [rows, A], outBias [d], addend. */
const unitsOp = defineOp<UnitsParams>({
  name: 'sparse_units',
  infer: ([x, choice, records, bias, gateBias, weight, outBias, addend], p) => {
    for (const t of [x, addend]) wantFloat(t, 'sparse_units');
    for (const t of [bias, gateBias, weight, outBias]) wantDType(t, 'f32', 'sparse_units', 'biases and weights');
    wantDType(choice, 'i32', 'sparse_units', 'choices');
    wantDType(records, 'u8', 'sparse_units', 'records');
    const [rows, d] = x!.shape;
    const [F, bytes] = records!.shape;
    if (x!.rank !== 2 || F % p.block || bytes !== unitBytes(p.type, d, p.gated))
      throw new AnsatzError(
        `sparse_units: x ${show(x!.shape)}, ${F} ${p.type}${p.gated ? ' gated' : ''} records of ${bytes} bytes and blocks of ${p.block} do not fit`,
      );
    const wanted: [Tensor | null, number[]][] = [
      [choice, [rows, F / p.block]],
      [bias, [F]],
      [gateBias, [F]],
      [weight, [rows, F / p.block]],
      [outBias, [d]],
      [addend, [rows, d]],
    ];
    for (const [t, shape] of wanted)
      if (t && !sameShape(t.shape, shape))
        throw new AnsatzError(`sparse_units: ${show(t.shape)} where ${show(shape)} is wanted`);
    return [
      { shape: [rows, d], dtype: p.out },
      { shape: [4], dtype: 'i32' },
    ];
  },
  launch: ([x, choice, records, ...rest], [y, touched], p) => ({
    kernel: 'sparse_units',
    args: [y, touched, x, choice, records, ...rest].map((t) => t?.arg() ?? null),
    ints: [...x!.shape, records!.shape[0], p.block, unitCode[p.type], +p.gated],
    floats: [p.alpha],
  }),
  flops: ([x, choice], _, p) => 2 * (p.gated ? 3 : 2) * x!.shape[1] * choice!.size,
  bytes: ([x, choice, records, , , , , addend], [y]) => {
    const [F, bytes] = records!.shape;
    return (
      Math.min(F, choice!.size) * bytes +
      choice!.size * 4 +
      x!.size * sizeOf(x!.dtype) +
      y.size * sizeOf(y.dtype) +
      (addend ? addend.size * sizeOf(addend.dtype) : 0)
    );
  },
});

export interface UnitsOptions {
  type: UnitType;
  /** Units a block, one of which is used. */
  block: number;
  gated?: boolean;
  bias?: Tensor | null;
  gateBias?: Tensor | null;
  /** f32 [rows, A]: factor on each chosen unit. */
  weight?: Tensor | null;
  outBias?: Tensor | null;
  addend?: Tensor | null;
  alpha?: number;
  out?: DType;
}

/**
 * alpha sum over blocks of relu(up_u . x + bias_u) down_u + outBias + addend, u the unit that the row chose in the block;
 * gated, relu(gate_u . x + gateBias_u) (up_u . x + bias_u) takes the ReLU's place. x [.., d], choice i32 [.., A].
 *
 * `touched` i32 [4] counts what was read: records, records whose second half was needed, and the same for pairs of row
 * and unit. A row's result is the same bits whatever rows come with it.
 */
export function sparseUnits(
  x: Tensor,
  choice: Tensor,
  records: Tensor,
  options: UnitsOptions,
): { y: Tensor; touched: Tensor } {
  const { type, block, gated = false, bias = null, gateBias = null, weight = null, outBias = null } = options;
  const { addend = null, alpha = 1, out = addend?.dtype ?? x.dtype } = options;
  const d = x.shape[x.rank - 1];
  const rows = x.size / d;
  const A = records.shape[0] / block;
  if (gradEnabled() && [x, bias, gateBias, weight, outBias, addend].some((t) => t?.requiresGrad))
    throw new AnsatzError('sparse_units: there is no gradient through packed units', {
      hint: 'run inference inside noGrad(), or train with the layer’s own matrices',
    });
  const flat = [reshape(x, [rows, d]), reshape(choice, [rows, A]), records];
  const more = [bias, gateBias, weight && reshape(weight, [rows, A]), outBias, addend && reshape(addend, [rows, d])];
  const [y, touched] = apply(unitsOp, [...flat, ...more], { type, block, gated, alpha, out });
  return { y: reshape(y, x.shape), touched };
}

/** Units F that logits stand for, inputs r of each, and how they lie: a matrix, or strips as packLogits() makes them. */
function logitsOf(t: Tensor): { units: number; rank: number; layout: number } {
  const [first, second] = t.shape;
  if (t.rank === 2) return { units: first, rank: second, layout: 0 };
  return t.rank === 3
    ? { units: first * 16, rank: second, layout: 1 }
    : { units: first * 16, rank: second * 2, layout: 2 };
}

/**
 * A controller's second matrix [F, r] in strips of 16 units, so that no sum runs across a register: f32 [F/16, r, 16], or
 * bf16 in pairs of inputs [F/16, ceil(r/2), 16, 2].
 * @throws AnsatzError when there are no whole strips
 */
export function packLogits(logits: Tensor, dtype: 'f32' | 'bf16'): Tensor {
  const [F, r] = logits.shape;
  if (logits.rank !== 2 || F % 16) throw new AnsatzError(`packLogits: ${show(logits.shape)} are no strips of 16 units`);
  if (dtype === 'f32') return cast(permute(reshape(logits, [F / 16, 16, r]), [0, 2, 1]), 'f32');
  const even = r % 2 ? pad(logits, 1, 0, 1) : logits;
  return cast(permute(reshape(even, [F / 16, 16, even.shape[1] / 2, 2]), [0, 2, 1, 3]), 'bf16');
}

/** Inputs: x [rows, d], low [r, d], logits, bias f32 [F] or null. */
const choiceOp = defineOp<{ block: number }>({
  name: 'unit_choice',
  infer: ([x, low, logits, bias], p) => {
    for (const t of [x, low, logits]) wantFloat(t, 'unit_choice');
    wantDType(bias, 'f32', 'unit_choice', 'the bias');
    const { units, rank, layout } = logitsOf(logits!);
    const r = low!.shape[0];
    const fits = layout === 2 ? rank - (r % 2) === r && logits!.dtype === 'bf16' : rank === r;
    const strips = layout === 0 || (p.block % 16 === 0 && (layout === 2 || logits!.dtype === 'f32'));
    if (x!.rank !== 2 || low!.shape[1] !== x!.shape[1] || !fits || !strips || units % p.block)
      throw new AnsatzError(
        `unit_choice: x ${show(x!.shape)}, low ${show(low!.shape)}, logits ${show(logits!.shape)} and blocks of ${p.block} do not fit`,
      );
    if (bias && bias.size !== units) throw new AnsatzError(`unit_choice: bias ${show(bias.shape)} for ${units} units`);
    return [{ shape: [x!.shape[0], units / p.block], dtype: 'i32' }];
  },
  launch: ([x, low, logits, bias], [choice], p) => {
    const { units, layout } = logitsOf(logits!);
    return {
      kernel: 'unit_choice',
      args: [choice, x, low, logits, bias].map((t) => t?.arg() ?? null),
      ints: [...x!.shape, low!.shape[0], units, p.block, layout],
    };
  },
  flops: ([x, low, logits]) => 2 * x!.shape[0] * (low!.size + logits!.size),
});

/**
 * The unit that each row uses of every block: the first largest of logits (low x) + bias. x [.., d], low [r, d],
 * logits [F, r] or packLogits() of them -> i32 [.., F / block]. Sums are f32, whatever dtype the weights have.
 */
export function unitChoice(
  x: Tensor,
  low: Tensor,
  logits: Tensor,
  options: { block: number; bias?: Tensor | null },
): Tensor {
  const d = x.shape[x.rank - 1];
  const { block, bias = null } = options;
  const choice = apply(choiceOp, [reshape(x, [x.size / d, d]), low, logits, bias], { block })[0];
  return reshape(choice, [...x.shape.slice(0, -1), logitsOf(logits).units / block]);
}
