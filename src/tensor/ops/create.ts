/** Tensors from nothing. They are ops too, so that a captured step makes them afresh. */
import type { Device } from '../../backend/device.ts';
import type { DType } from '../../backend/dtype.ts';
import { activeRecorder, issue } from '../capture.ts';
import { type Shape, Tensor } from '../tensor.ts';

function launch(t: Tensor, kernel: string, floats: number[]): Tensor {
  const call = { kernel, args: [t.arg()], ints: [t.size], floats, cost: { flops: 0, bytes: t.storage.memory.bytes } };
  issue(t.device, call);
  activeRecorder()?.made.push(t.storage);
  return t;
}

/** A tensor of one value. */
export const fill = (device: Device, shape: Shape, value: number, dtype: DType = 'f32'): Tensor =>
  launch(Tensor.empty(device, dtype, shape), 'fill', [value]);
export const zeros = (device: Device, shape: Shape, dtype: DType = 'f32'): Tensor => fill(device, shape, 0, dtype);
export const ones = (device: Device, shape: Shape, dtype: DType = 'f32'): Tensor => fill(device, shape, 1, dtype);

/** start, start + step, ... */
export const iota = (device: Device, n: number, start = 0, step = 1, dtype: DType = 'f32'): Tensor =>
  launch(Tensor.empty(device, dtype, [n]), 'iota', [start, step]);
