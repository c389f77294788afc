/**
 * One op = one row: name, shape rule, kernel calls, cost, gradient. apply() is the only way to compute: it checks,
 * allocates, dispatches, records for captured steps, and notes the op on the tape.
 */
import type { Arg, Cost } from '../backend/device.ts';
import { type DType, isBlock, sizeOf } from '../backend/dtype.ts';
import { AnsatzError } from '../backend/errors.ts';
import { activeRecorder, issue } from './capture.ts';
import { gradEnabled, nextSequence, type TapeNode } from './tape.ts';
import { type Shape, Tensor } from './tensor.ts';
import { report, watched } from './watch.ts';

/** Shape and dtype of a tensor without its values. */
export interface Aval {
  readonly shape: Shape;
  readonly dtype: DType;
}

export type Inputs = readonly (Tensor | null)[];

/** A kernel call before its cost is attached. */
export interface Launch {
  readonly kernel: string;
  readonly args: readonly (Arg | null)[];
  readonly ints?: readonly number[];
  readonly floats?: readonly number[];
}

export interface GradContext<P> {
  readonly inputs: Inputs;
  readonly outputs: readonly Tensor[];
  /** Gradient of each output; null where nothing depends on it. */
  readonly grads: readonly (Tensor | null)[];
  readonly params: P;
  /** Whether input k's gradient is wanted at all. */
  needs(k: number): boolean;
  /**
   * What has been summed for input k's gradient so far, for a kernel that can add it on the way. After a call that
   * returned a tensor, the gradient returned for input k must include it.
   */
  take(k: number): Tensor | null;
}

export interface Op<P> {
  readonly name: string;
  /** Output shapes and dtypes. Throws AnsatzError when the inputs do not fit together. */
  infer(inputs: Inputs, params: P): Aval[];
  /** The kernel calls that fill the outputs. Inference of shapes has succeeded. */
  launch(inputs: Inputs, outputs: readonly Tensor[], params: P): Launch | Launch[];
  /** Floating-point operations (a multiply-add counts two). */
  flops(inputs: Inputs, outputs: readonly Tensor[], params: P): number;
  /** Bytes moved at least; by default every input read and every output written once. */
  bytes?(inputs: Inputs, outputs: readonly Tensor[], params: P): number;
  /** Gradients of the inputs, in order; null where there is none. Absent: not differentiable. */
  gradient?(context: GradContext<P>): (Tensor | null)[];
  /** Output 0 shares input 0's storage (reshape): nothing is allocated or launched. */
  readonly view?: boolean;
  /** Updates inputs in place and has no outputs of its own (optimisers). */
  readonly inPlace?: boolean;
  /** Reads weights in blocks (quantised ones); other ops would take their bytes for values. */
  readonly blocks?: boolean;
}

/** Every op by name: the table that tests, accounting and docs walk. */
export const opTable = new Map<string, Op<unknown>>();

/** Adds a row to the table. */
export function defineOp<P>(op: Op<P>): Op<P> {
  if (opTable.has(op.name)) throw new Error(`op '${op.name}' is defined twice`);
  opTable.set(op.name, op as Op<unknown>);
  return op;
}

const tensorBytes = (t: Tensor): number => t.size * sizeOf(t.dtype);

function costOf<P>(op: Op<P>, inputs: Inputs, outputs: readonly Tensor[], params: P): Cost {
  if (op.bytes) return { flops: op.flops(inputs, outputs, params), bytes: op.bytes(inputs, outputs, params) };
  let bytes = 0;
  for (let k = 0; k < inputs.length; k++) if (inputs[k]) bytes += tensorBytes(inputs[k]!);
  for (let k = 0; k < outputs.length; k++) bytes += tensorBytes(outputs[k]);
  return { flops: op.flops(inputs, outputs, params), bytes };
}

const none: readonly number[] = [];

function dispatch(first: Tensor, launch: Launch, cost: Cost | undefined): void {
  issue(first.device, {
    kernel: launch.kernel,
    args: launch.args,
    ints: launch.ints ?? none,
    floats: launch.floats ?? none,
    cost,
  });
}

function refuseBlocks(op: string, k: number, t: Tensor): never {
  throw new AnsatzError(
    `${op}: input ${k} is a ${t.dtype} weight: only matmul with transB, groupedMatmul with transB and embedding read those`,
    { hint: 'dequantise() gives the f32 tensor' },
  );
}

/** Runs an op on its inputs and returns its outputs. */
export function apply<P>(op: Op<P>, inputs: Inputs, params: P): Tensor[] {
  let first: Tensor | null = null;
  let wantsGrad = false;
  for (let k = 0; k < inputs.length; k++) {
    const t = inputs[k];
    if (!t) continue;
    if (t.storage.released)
      throw new AnsatzError(`${op.name}: input ${k} was freed: the scope it was made in has ended`);
    if (first === null) first = t;
    else if (t.device !== first.device)
      throw new AnsatzError(`${op.name}: input ${k} is on ${t.device.kind}, the first on ${first.device.kind}`);
    if (!op.blocks && isBlock(t.dtype)) refuseBlocks(op.name, k, t);
    if (t.requiresGrad) wantsGrad = true;
  }
  if (op.inPlace && inputs[0]?.storage.memory.readOnly)
    throw new AnsatzError(`${op.name}: the weights of a file that is used in place cannot be changed`, {
      hint: 'train from a run with `ansatz train --from RUN`: that copies them',
    });
  if (first === null) throw new AnsatzError(`${op.name}: no input tensor`);

  const avals = op.infer(inputs, params);
  const outputs = new Array<Tensor>(avals.length);
  if (op.view) outputs[0] = new Tensor(first.storage, avals[0].dtype, avals[0].shape, first.offset);
  else for (let k = 0; k < avals.length; k++) outputs[k] = Tensor.empty(first.device, avals[k].dtype, avals[k].shape);

  if (!op.view) {
    const launch = op.launch(inputs, outputs, params);
    const recorder = activeRecorder();
    // Costs are only looked at in recorded steps: eager calls do not pay for them.
    const cost = recorder ? costOf(op, inputs, outputs, params) : undefined;
    if (recorder) for (let k = 0; k < outputs.length; k++) recorder.made.push(outputs[k].storage);
    if (Array.isArray(launch)) {
      const part = cost && { flops: cost.flops / launch.length, bytes: cost.bytes / launch.length };
      for (let k = 0; k < launch.length; k++) dispatch(first, launch[k], part);
    } else dispatch(first, launch, cost);
    if (watched()) report(op.name, inputs, outputs, params);
  }

  if (wantsGrad && gradEnabled() && op.gradient) {
    const node: TapeNode = { op: op as Op<unknown>, inputs, outputs, params, sequence: nextSequence() };
    for (let k = 0; k < outputs.length; k++) {
      if (outputs[k].dtype === 'i32' || outputs[k].dtype === 'u8') continue;
      outputs[k].requiresGrad = true;
      outputs[k].node = node;
    }
  }
  return outputs;
}
