// Cases of every kernel of docs/kernels.md.
import { attentionCases } from './attention.ts';
import { blockGateCases, unitSparsityCases } from './block-gate.ts';
import type { Rng } from './build.ts';
import { convCases } from './conv.ts';
import { elementwiseCases } from './elementwise.ts';
import { factoredCases } from './factored.ts';
import { gatherCases } from './gather-scatter.ts';
import { lossCases } from './loss.ts';
import { matmulCases } from './matmul.ts';
import { normCases } from './norm.ts';
import { optimCases } from './optim.ts';
import { optimOtherCases } from './optim-others.ts';
import { randomCases } from './random.ts';
import { reduceCases } from './reduce.ts';
import { ropeCases } from './rope.ts';
import { routeCases } from './route.ts';
import { stridedCases } from './strided.ts';
import type { CaseGenerator, KernelCase } from './types.ts';

export { Rng } from './build.ts';
export type { KernelCase, TensorSpec, Tolerance } from './types.ts';

const generators: Record<string, CaseGenerator> = {
  ...elementwiseCases,
  ...stridedCases,
  ...reduceCases,
  ...normCases,
  ...matmulCases,
  ...attentionCases,
  ...ropeCases,
  ...routeCases,
  ...gatherCases,
  ...lossCases,
  ...randomCases,
  ...convCases,
  ...optimCases,
  ...optimOtherCases,
  ...blockGateCases,
  ...unitSparsityCases,
  ...factoredCases,
};

/** Kernels that have cases. */
export const kernelNames: readonly string[] = Object.keys(generators);

/** Random calls of one kernel; the same for the same seed. */
export function casesFor(kernel: string, rng: Rng): KernelCase[] {
  const generate = generators[kernel];
  if (!generate) throw new Error(`no test cases for kernel '${kernel}': add a generator in test/support/kernel-cases`);
  return generate(kernel, rng);
}
