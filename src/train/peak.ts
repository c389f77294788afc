/**
 * What utilisation is measured against: the best rate of a large matrix product on this device, measured in a fraction
 * of a second. A datasheet's number would not know this machine's clock, cores or neighbours.
 */
import type { Device } from '../backend/device.ts';
import { type Compute, capture, matmul, noGrad, normal, RandomState } from '../tensor/index.ts';

/** FLOP/s of a 1024^3 product in a precision (best of several). */
export async function measurePeak(device: Device, compute: Compute): Promise<number> {
  const n = 1024;
  const random = new RandomState(device, 7);
  const dtype = compute === 'bf16' ? 'bf16' : 'f32';
  const [a, b] = [1, 2].map((stream) => normal(random, [n, n], stream, 0, 1, dtype).keep());
  const step = capture(device, () => noGrad(() => matmul(a, b, { compute })));
  let best = Infinity;
  for (let k = 0; k < 12; k++) {
    const [ns] = await step.program.profile();
    best = Math.min(best, ns);
  }
  step.dispose();
  for (const t of [a, b, step.result, random.tensor]) t.dispose();
  return (2 * n ** 3) / (best * 1e-9);
}
