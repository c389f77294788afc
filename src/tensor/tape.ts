/** Reverse-mode differentiation over the ops that were run. */
import { AnsatzError } from '../backend/errors.ts';
import type { Inputs, Op } from './op.ts';
import type { Tensor } from './tensor.ts';

export interface TapeNode {
  readonly op: Op<unknown>;
  readonly inputs: Inputs;
  readonly outputs: readonly Tensor[];
  readonly params: unknown;
  /** Order of execution: larger ran later. */
  readonly sequence: number;
}

let enabled = true;
let sequence = 0;

export const gradEnabled = (): boolean => enabled;
export const nextSequence = (): number => ++sequence;

/** Runs fn without recording gradients. */
export function noGrad<R>(fn: () => R): R {
  const before = enabled;
  enabled = false;
  try {
    return fn();
  } finally {
    enabled = before;
  }
}

/** How gradients are seeded and summed; the op layer registers itself here (it lies above this file). */
export interface GradOps {
  ones(like: Tensor): Tensor;
  add(a: Tensor, b: Tensor): Tensor;
  zeros(like: Tensor): Tensor;
}
let gradOps: GradOps | undefined;
export const useGradOps = (ops: GradOps): void => {
  gradOps = ops;
};

/**
 * Gradients of a scalar with respect to `wrt`, in order. One that the scalar does not depend on gets zeros; one that
 * never asked for gradients is refused, since its zeros could be wrong.
 * @param seed gradient of `output` itself, when it is not a scalar
 */
export function gradients(output: Tensor, wrt: readonly Tensor[], seed?: Tensor): Tensor[] {
  if (!gradOps) throw new Error('ops are not loaded');
  const ops = gradOps;
  if (!seed && output.size !== 1)
    throw new AnsatzError(`gradients() wants a scalar or a seed, shape is [${output.shape.join(', ')}]`);
  const unmarked = wrt.findIndex((t) => !t.requiresGrad);
  if (unmarked >= 0)
    throw new AnsatzError(`gradients(): tensor ${unmarked} of those asked for was not recorded as needing a gradient`, {
      hint: 'mark it with parameter() before computing with it, and compute outside noGrad()',
    });

  // Nodes that matter: reachable from the output.
  const nodes = new Set<TapeNode>();
  const stack: TapeNode[] = output.node ? [output.node] : [];
  for (let node = stack.pop(); node; node = stack.pop()) {
    if (nodes.has(node)) continue;
    nodes.add(node);
    for (const t of node.inputs) if (t?.node && !nodes.has(t.node)) stack.push(t.node);
  }

  return noGrad(() => {
    const grads = new Map<Tensor, Tensor>([[output, seed ?? ops.ones(output)]]);
    const wanted = new Set(wrt);
    for (const node of [...nodes].sort((a, b) => b.sequence - a.sequence)) {
      const outs = node.outputs.map((o) => grads.get(o) ?? null);
      for (const o of node.outputs) if (!wanted.has(o)) grads.delete(o);
      if (outs.every((g) => g === null)) continue;
      if (!node.op.gradient) throw new AnsatzError(`${node.op.name} is not differentiable`);
      const needs = (k: number): boolean => node.inputs[k]?.requiresGrad ?? false;
      const taken = new Set<number>();
      const take = (k: number): Tensor | null => {
        const sum = grads.get(node.inputs[k]!) ?? null;
        // The same tensor in two places would be counted twice: leave that case to the sum below.
        if (sum === null || node.inputs.indexOf(node.inputs[k]) !== node.inputs.lastIndexOf(node.inputs[k]))
          return null;
        taken.add(k);
        return sum;
      };
      const ins = node.op.gradient({
        inputs: node.inputs,
        outputs: node.outputs,
        grads: outs,
        params: node.params,
        needs,
        take,
      });
      for (let k = 0; k < ins.length; k++) {
        const t = node.inputs[k];
        const g = ins[k];
        if (!t || !g || !t.requiresGrad) continue;
        const before = taken.has(k) ? undefined : grads.get(t);
        grads.set(t, before ? ops.add(before, g) : g);
      }
    }
    return wrt.map((t) => grads.get(t) ?? ops.zeros(t));
  });
}
