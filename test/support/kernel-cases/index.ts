// Cases of every kernel of docs/kernels.md.
import { attentionCases } from './attention.ts';
import { blockAttentionCases } from './block-attention.ts';
import { blockGateCases, unitSparsityCases } from './block-gate.ts';
import { blockPartsCases } from './block-parts.ts';
import type { Rng } from './build.ts';
import { convCases } from './conv.ts';
import { distilCases } from './distil.ts';
import { drawCases } from './draw.ts';
import { elementwiseCases } from './elementwise.ts';
import { factoredCases } from './factored.ts';
import { gatherCases } from './gather-scatter.ts';
import { longConvCases } from './long-conv.ts';
import { lossCases } from './loss.ts';
import { lshCases } from './lsh.ts';
import { matmulCases } from './matmul.ts';
import { normCases } from './norm.ts';
import { obsCases } from './obs.ts';
import { optimCases } from './optim.ts';
import { optimOtherCases } from './optim-others.ts';
import { pagedCases } from './paged.ts';
import { pagedBlockCases } from './paged-blocks.ts';
import { pagedConvCases } from './paged-conv.ts';
import { pagedLshCases } from './paged-lsh.ts';
import { quantCases } from './quant.ts';
import { quantRowCases } from './quant-rows.ts';
import { quantUnitCases } from './quant-units.ts';
import { randomCases } from './random.ts';
import { reduceCases } from './reduce.ts';
import { ropeCases } from './rope.ts';
import { routeCases } from './route.ts';
import { scanCases } from './scan.ts';
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
  ...distilCases,
  ...drawCases,
  ...lshCases,
  ...randomCases,
  ...convCases,
  ...obsCases,
  ...optimCases,
  ...optimOtherCases,
  ...blockAttentionCases,
  ...blockGateCases,
  ...blockPartsCases,
  ...unitSparsityCases,
  ...factoredCases,
  ...scanCases,
  ...longConvCases,
  ...pagedCases,
  ...pagedBlockCases,
  ...pagedConvCases,
  ...pagedLshCases,
  ...quantCases,
  ...quantRowCases,
  ...quantUnitCases,
};

/** Kernels that have cases. */
export const kernelNames: readonly string[] = Object.keys(generators);

/** Random calls of one kernel; the same for the same seed. */
export function casesFor(kernel: string, rng: Rng): KernelCase[] {
  const generate = generators[kernel];
  if (!generate) throw new Error(`no test cases for kernel '${kernel}': add a generator in test/support/kernel-cases`);
  return generate(kernel, rng);
}
