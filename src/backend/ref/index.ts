// Every kernel of docs/kernels.md in plain float64 TypeScript: what the kernels of other devices are tested against.
import { attention } from './attention.ts';
import { conv } from './conv.ts';
import { elementwise } from './elementwise.ts';
import { gather } from './gather-scatter.ts';
import { loss } from './loss.ts';
import { matmul } from './matmul.ts';
import { norm } from './norm.ts';
import { optim } from './optim.ts';
import { random } from './random.ts';
import { reduce } from './reduce.ts';
import { rope } from './rope.ts';
import type { RefKernel } from './types.ts';

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
};
