/** Parameters of one model that passes can be computed with: its own, and those of its adapters. */
import type { ParamTree } from '../../nn/index.ts';
import type { Captured, Tensor } from '../../tensor/index.ts';

export interface PassResult {
  readonly logits: Tensor;
  /** A token of each row of them, as the pass was asked to draw it. */
  readonly drawn: Tensor;
  readonly observed: Readonly<Record<string, Tensor>>;
}

export interface Reader {
  readonly step: Captured<null>;
  readonly inputs: readonly Tensor[];
}

/** Parameters, what layers made of them when they were added, and the programs that use them. */
export interface Variant {
  readonly params: ParamTree;
  readonly constants: readonly Tensor[];
  readonly programs: Map<string, Captured<PassResult>>;
  readonly readers: Map<number, Reader>;
}

export function disposeVariant({ constants, programs, readers }: Variant): void {
  for (const step of programs.values()) {
    step.dispose();
    for (const t of [step.result.logits, step.result.drawn, ...Object.values(step.result.observed)]) t.dispose();
  }
  for (const { step, inputs } of readers.values()) {
    step.dispose();
    for (const t of inputs) t.dispose();
  }
  for (const t of constants) t.dispose();
}
