/** Reverse-mode differentiation over the ops that were run. */
import { AnsatzError } from '../backend/errors.ts';
import type { Inputs, Op } from './op.ts';
import type { Tensor } from './tensor.ts';

export interface TapeNode {
  readonly op: Pick<Op<unknown>, 'name' | 'gradient'>;
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

function withRecording<R>(on: boolean, fn: () => R): R {
  const before = enabled;
  enabled = on;
  try {
    return fn();
  } finally {
    enabled = before;
  }
}

/** Runs fn without recording gradients. */
export const noGrad = <R>(fn: () => R): R => withRecording(false, fn);

/** Runs fn recording gradients: for passes that are computed again while a gradient is. */
export const recording = <R>(fn: () => R): R => withRecording(true, fn);

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

  return noGrad(() => pullBack([output], [seed ?? ops.ones(output)], wrt).map((g, k) => g ?? ops.zeros(wrt[k])));
}

/**
 * Gradients of the sum over k of <seeds[k], outputs[k]> with respect to `wrt`; null where nothing depends on it. What
 * has been summed for one of them before can be given in `sums`: the result then includes it.
 */
export function pullBack(
  outputs: readonly Tensor[],
  seeds: readonly Tensor[],
  wrt: readonly Tensor[],
  sums: readonly (Tensor | null)[] = [],
): (Tensor | null)[] {
  if (!gradOps) throw new Error('ops are not loaded');
  const ops = gradOps;
  // Nodes that matter: reachable from the outputs.
  const nodes = new Set<TapeNode>();
  const stack: TapeNode[] = outputs.flatMap((o) => (o.node ? [o.node] : []));
  for (let node = stack.pop(); node; node = stack.pop()) {
    if (nodes.has(node)) continue;
    nodes.add(node);
    for (const t of node.inputs) if (t?.node && !nodes.has(t.node)) stack.push(t.node);
  }

  return noGrad(() => {
    const grads = new Map<Tensor, Tensor>();
    const put = (t: Tensor, g: Tensor | null): void => {
      const before = grads.get(t);
      if (g) grads.set(t, before ? ops.add(before, g) : g);
    };
    outputs.forEach((o, k) => {
      put(o, seeds[k]);
    });
    sums.forEach((sum, k) => {
      put(wrt[k], sum);
    });
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
        if (taken.has(k)) grads.set(t, g);
        else put(t, g);
      }
    }
    return wrt.map((t) => grads.get(t) ?? null);
  });
}
