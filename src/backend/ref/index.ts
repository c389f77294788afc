// Every kernel of docs/kernels.md in plain float64 TypeScript: what the kernels of other devices are tested against.
import { attention } from './attention.ts';
import { blockAttention } from './block-attention.ts';
import { blockGate } from './block-gate.ts';
import { blockParts } from './block-parts.ts';
import { conv } from './conv.ts';
import { distil } from './distil.ts';
import { draws } from './draw.ts';
import { elementwise } from './elementwise.ts';
import { factored } from './factored.ts';
import { gather } from './gather-scatter.ts';
import { longConv } from './long-conv.ts';
import { loss } from './loss.ts';
import { lsh } from './lsh.ts';
import { matmul } from './matmul.ts';
import { norm } from './norm.ts';
import { obs } from './obs.ts';
import { optim } from './optim.ts';
import { optimOthers } from './optim-others.ts';
import { paged } from './paged.ts';
import { pagedBlocks } from './paged-blocks.ts';
import { pagedConv } from './paged-conv.ts';
import { pagedLsh } from './paged-lsh.ts';
import { quant } from './quant.ts';
import { quantPack } from './quant-pack.ts';
import { quantUnits } from './quant-units.ts';
import { random } from './random.ts';
import { reduce } from './reduce.ts';
import { rope } from './rope.ts';
import { route } from './route.ts';
import { scan } from './scan.ts';
import type { RefKernel } from './types.ts';
import { unitSparsity } from './unit-sparsity.ts';

export type { RefArray, RefCall, RefKernel } from './types.ts';
export { refOptions } from './types.ts';

export const refKernels: Record<string, RefKernel> = {
  ...elementwise,
  ...reduce,
  ...norm,
  ...matmul,
  ...attention,
  ...rope,
  ...gather,
  ...loss,
  ...distil,
  ...draws,
  ...lsh,
  ...random,
  ...conv,
  ...obs,
  ...optim,
  ...blockAttention,
  ...blockGate,
  ...blockParts,
  ...unitSparsity,
  ...factored,
  ...paged,
  ...pagedBlocks,
  ...pagedConv,
  ...pagedLsh,
  ...quant,
  ...quantPack,
  ...quantUnits,
  ...optimOthers,
  ...route,
  ...scan,
  ...longConv,
};
