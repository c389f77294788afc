/** Dense matrix products against PyTorch: large squares, every transposition, odd sizes, and a training step's shapes. */
import { openDevice } from '../src/backend/index.ts';
import { type Compute, capture, matmul, noGrad, normal, RandomState } from '../src/tensor/index.ts';
import { interleave, type Row } from './harness.ts';
import { noTorch, Torch } from './torch.ts';

interface Shape {
  m: number;
  n: number;
  k: number;
  transA?: boolean;
  transB?: boolean;
}

/** A function that measures the best GFLOP/s of a product over a short while. */
function product(shape: Shape, compute: Compute, seconds: number) {
  const device = openDevice('cpu');
  const random = new RandomState(device, 1);
  const { m, n, k, transA = false, transB = false } = shape;
  const dtype = compute;
  const a = normal(random, transA ? [k, m] : [m, k], 1, 0, 1, dtype).keep();
  const b = normal(random, transB ? [n, k] : [k, n], 2, 0, 1, dtype).keep();
  const step = capture(device, () => noGrad(() => matmul(a, b, { transA, transB, compute, out: dtype })));
  const run = async (): Promise<number> => {
    let best = Infinity;
    for (const end = performance.now() + seconds * 1000; performance.now() < end; )
      best = Math.min(best, (await step.program.profile())[0]);
    return (2 * m * n * k) / best;
  };
  const free = (): void => {
    step.dispose();
    for (const t of [a, b, step.result, random.tensor]) t.dispose();
  };
  return { run, free };
}

const label = (s: Shape, compute: Compute): string =>
  `gemm/${compute}/${s.m}x${s.n}x${s.k}${s.transA ? '/tA' : ''}${s.transB ? '/tB' : ''}`;

export async function* run(): AsyncIterable<Row> {
  const torch = await Torch.start();
  const note = torch ? {} : { note: noTorch };
  for (const n of [1024, 2048])
    for (const compute of ['bf16', 'f32'] as const) {
      const shape = { m: n, n, k: n };
      const { run: ours, free } = product(shape, compute, 0.3);
      const peer = torch && (async () => (await torch.ask({ op: 'gemm', n, dtype: compute, seconds: 0.3 })).gflops);
      const r = await interleave(ours, peer, 7);
      free();
      yield { name: label(shape, compute), ...r, peerName: torch?.name, unit: 'GFLOP/s', ...note };
    }
  torch?.stop();
  const others: Shape[] = [
    { m: 1024, n: 1024, k: 1024, transA: true },
    { m: 1024, n: 1024, k: 1024, transB: true },
    { m: 1024, n: 1024, k: 1024, transA: true, transB: true },
    { m: 1023, n: 1021, k: 1019 },
    { m: 2048, n: 768, k: 256, transB: true },
    { m: 2048, n: 1024, k: 256, transB: true },
    { m: 2048, n: 256, k: 1024, transB: true },
    { m: 2048, n: 256, k: 1024 },
    { m: 1024, n: 256, k: 2048, transA: true },
    { m: 1, n: 4096, k: 1024, transB: true },
    { m: 16, n: 1024, k: 1024, transB: true },
  ];
  for (const shape of others)
    for (const compute of ['bf16', 'f32'] as const) {
      const { run: ours, free } = product(shape, compute, 0.1);
      const r = await interleave(ours, null, 3);
      free();
      yield { name: label(shape, compute), ...r, unit: 'GFLOP/s' };
    }
}
