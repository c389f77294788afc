// Every kernel of docs/kernels.md in plain float64 TypeScript: what the kernels of other devices are tested against.
import { attention } from './attention.ts';
import { blockGate } from './block-gate.ts';
import { conv } from './conv.ts';
import { elementwise } from './elementwise.ts';
import { factored } from './factored.ts';
import { gather } from './gather-scatter.ts';
import { loss } from './loss.ts';
import { matmul } from './matmul.ts';
import { norm } from './norm.ts';
import { optim } from './optim.ts';
import { optimOthers } from './optim-others.ts';
import { random } from './random.ts';
import { reduce } from './reduce.ts';
import { rope } from './rope.ts';
import { route } from './route.ts';
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
  ...random,
  ...conv,
  ...optim,
  ...blockGate,
  ...unitSparsity,
  ...factored,
  ...optimOthers,
  ...route,
};
