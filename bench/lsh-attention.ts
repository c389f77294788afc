/**
 * Attention over hashed chunks against full causal attention, forward and backward, hashing and sorting included: 8 heads
 * of 64, one row of T random tokens, 2 rounds, chunks of 64. Rates are steps a second.
 */
import { CpuDevice } from '../src/backend/cpu/device.ts';
import {
  attentionPacked,
  type Captured,
  capture,
  gradients,
  lshAttention,
  lshHash,
  lshSort,
  normal,
  RandomState,
  scope,
  type Tensor,
} from '../src/tensor/index.ts';
import { bucketFactors } from '../src/tricks/lsh-attention/index.ts';
import { interleave, type Row } from './harness.ts';

const [HEADS, WIDTH, ROUNDS, CHUNK] = [8, 64, 2, 64];
const LENGTHS = [1024, 2048, 4096, 8192, 16384, 32768];

async function rate(step: Captured<unknown>): Promise<number> {
  const start = performance.now();
  let runs = 0;
  do {
    await step.run();
    runs++;
  } while (performance.now() - start < 100);
  return (1000 * runs) / (performance.now() - start);
}

export async function* run(): AsyncIterable<Row> {
  const device = new CpuDevice();
  const random = new RandomState(device, 5);
  for (const dtype of ['f32', 'bf16'] as const)
    for (const t of LENGTHS) {
      const draw = (heads: number): Tensor =>
        scope(() => normal(random, [1, t, heads, WIDTH], heads, 0, 1, dtype).parameter());
      const [qkv, qv, dout] = [draw(3 * HEADS), draw(2 * HEADS), draw(HEADS)];
      const factors = bucketFactors(t, CHUNK);
      const axes = factors.reduce((n, f) => n + f / 2, 0);
      const count = factors.reduce((n, f) => n * f, 1);
      const full = capture(device, () => gradients(attentionPacked(qkv, HEADS, HEADS, { causal: true }), [qkv], dout));
      const hashed = capture(device, () => {
        const buckets = lshHash(qv, HEADS, normal(random, [HEADS, ROUNDS, axes, WIDTH], 7), factors);
        const chunks = lshSort(qv, { heads: HEADS, rounds: ROUNDS, chunk: CHUNK, buckets, count });
        return gradients(lshAttention(qv, chunks, { scale: 1 }), [qv], dout);
      });
      const r = await interleave(
        () => rate(hashed),
        () => rate(full),
        t > 16384 ? 1 : t > 4096 ? 2 : 5,
      );
      yield { name: `lsh forward + backward, T ${t}, ${dtype}`, unit: 'steps/s', peerName: 'full', ...r };
      for (const step of [full, hashed]) step.dispose();
      for (const x of [qkv, qv, dout]) x.dispose();
    }
}
