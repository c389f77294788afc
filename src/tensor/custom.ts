/** Parts of a step that bring a gradient of their own, where recording every op would keep too much. */
import type { GradContext, Inputs } from './op.ts';
import { gradEnabled, nextSequence, noGrad, type TapeNode } from './tape.ts';
import type { Tensor } from './tensor.ts';

/**
 * What `forward` makes, unrecorded, as one node of the tape: `gradient` gets the gradients of those tensors and gives
 * those of `inputs`, in order. Tensors that `forward` reads besides its inputs get none.
 */
export function custom(
  name: string,
  inputs: Inputs,
  forward: () => readonly Tensor[],
  gradient: (context: GradContext<unknown>) => (Tensor | null)[],
): Tensor[] {
  // Detached: what is handed through unchanged must not keep its own history, which ends in `inputs`.
  const outputs = noGrad(forward).map((t) => t.detach());
  if (!gradEnabled() || !inputs.some((t) => t?.requiresGrad)) return outputs;
  const node: TapeNode = { op: { name, gradient }, inputs, outputs, params: null, sequence: nextSequence() };
  for (const t of outputs) {
    t.requiresGrad = true;
    t.node = node;
  }
  return outputs;
}
