/**
 * Products with weights in blocks: the share of the machine's read bandwidth that one row reaches, what more rows cost,
 * and the speed of many rows beside our own bf16 product. The bandwidth is that of a plain sum over other memory of the
 * same size, taken in turns with the product.
 */
import type { Device } from '../src/backend/device.ts';
import { openDevice } from '../src/backend/index.ts';
import {
  type BlockType,
  blockTypes,
  type Captured,
  capture,
  factoredLinear,
  matmul,
  noGrad,
  normal,
  packUnits,
  quantise,
  RandomState,
  scope,
  sparseUnits,
  sum,
  Tensor,
  type UnitType,
  unitBytes,
} from '../src/tensor/index.ts';
import { interleave, type Row } from './harness.ts';

/** Weights in all, so that none is still in a cache when its turn comes again. */
const FOOTPRINT = 256 << 20;

/** Best nanoseconds of any of the programs over a short while; `prepare` comes before each run and is not timed. */
async function best(
  steps: readonly Captured<unknown>[],
  seconds: number,
  prepare: (k: number) => void = () => {},
): Promise<number> {
  let least = Infinity;
  let k = 0;
  for (const end = performance.now() + seconds * 1000; performance.now() < end; k++) {
    prepare(k % steps.length);
    const times = await steps[k % steps.length].program.profile();
    least = Math.min(
      least,
      times.reduce((a, b) => a + b, 0),
    );
  }
  return least;
}

interface Runner {
  readonly steps: Captured<Tensor>[];
  /** Bytes of weights that a step reads. */
  readonly bytes: number;
  prepare?(k: number): void;
  free(): void;
}

/** Programs of R rows times each of several copies of a matrix [N, K]. */
function product(device: Device, type: BlockType, R: number, N: number, K: number): Runner {
  const random = new RandomState(device, 1);
  const made = scope(() => {
    const one = quantise(normal(random, [N, K], 1), type);
    const { bytes } = one.storage.memory;
    const bits = one.bitsSync();
    const copies = Array.from({ length: Math.max(2, Math.ceil(FOOTPRINT / bytes)) }, () => {
      const copy = Tensor.empty(device, type, [N, K]);
      copy.writeBits(bits);
      return copy.keep();
    });
    return { bytes, copies, x: normal(random, [R, K], 2).keep() };
  });
  const { copies, x, bytes } = made;
  const steps = copies.map((w) => capture(device, () => noGrad(() => matmul(x, w, { transB: true, compute: 'bf16' }))));
  const free = (): void => {
    for (const step of steps) {
      step.dispose();
      step.result.dispose();
    }
    for (const t of [...copies, x, random.tensor]) t.dispose();
  };
  return { steps, bytes, free };
}

/** A plain sum over `bytes` of memory. */
function reading(device: Device, bytes: number): Runner {
  const n = Math.ceil(bytes / 4);
  const all = Array.from({ length: Math.max(2, Math.ceil(FOOTPRINT / bytes)) }, () => {
    const t = Tensor.empty(device, 'f32', [n]);
    t.write(new Float32Array(n));
    return t.keep();
  });
  const steps = all.map((t) => capture(device, () => sum(t)));
  const free = (): void => {
    for (const step of steps) {
      step.dispose();
      step.result.dispose();
    }
    for (const t of all) t.dispose();
  };
  return { steps, bytes: n * 4, free };
}

const rate =
  (r: Runner, amount: number, seconds = 0.25) =>
  async (): Promise<number> =>
    amount / (await best(r.steps, seconds, r.prepare));

async function* oneRow(device: Device): AsyncIterable<Row> {
  for (const [N, K] of [
    [4096, 4096],
    [11008, 4096],
    [8192, 2048],
  ])
    for (const type of blockTypes) {
      const ours = product(device, type, 1, N, K);
      const read = reading(device, ours.bytes);
      const r = await interleave(rate(ours, ours.bytes), rate(read, read.bytes), 5);
      ours.free();
      read.free();
      yield { name: `decode-matmul/${type}/1x${N}x${K}`, ...r, peerName: 'plain read', unit: 'GB/s of weights' };
    }
}

async function* moreRows(device: Device): AsyncIterable<Row> {
  const [N, K] = [4096, 4096];
  for (const type of blockTypes) {
    const one = product(device, type, 1, N, K);
    for (const R of [2, 4, 8, 16, 32, 64]) {
      const ours = product(device, type, R, N, K);
      const r = await interleave(rate(ours, R * 1e9, 0.15), rate(one, 1e9, 0.15), 3);
      ours.free();
      yield { name: `decode-matmul/${type}/${R}x${N}x${K}`, ...r, peerName: 'one row', unit: 'rows/s' };
    }
    one.free();
  }
}

async function* manyRows(device: Device): AsyncIterable<Row> {
  const [R, N, K] = [512, 4096, 4096];
  const random = new RandomState(device, 1);
  const [x, w] = [normal(random, [R, K], 1, 0, 1, 'bf16').keep(), normal(random, [N, K], 2, 0, 1, 'bf16').keep()];
  const dense: Runner = {
    steps: [capture(device, () => noGrad(() => matmul(x, w, { transB: true, compute: 'bf16', out: 'bf16' })))],
    bytes: 0,
    free: () => {},
  };
  for (const type of blockTypes) {
    const ours = product(device, type, R, N, K);
    const operations = 2 * R * N * K;
    const r = await interleave(rate(ours, operations), rate(dense, operations), 3);
    ours.free();
    yield { name: `decode-matmul/${type}/${R}x${N}x${K}`, ...r, peerName: 'our bf16 product', unit: 'Gop/s' };
  }
  for (const t of [x, w, random.tensor, dense.steps[0].result]) t.dispose();
  dense.steps[0].dispose();
}

/** A layer of which a row uses one unit a block, against reading the bytes that it touched. */
async function* units(device: Device): AsyncIterable<Row> {
  for (const [d, F, N] of [
    [1024, 4096, 64],
    [4096, 16384, 64],
  ])
    for (const type of ['q8', 'q4', 'bf16', 'f32'] as UnitType[])
      for (const R of [1, 8, 64]) {
        const random = new RandomState(device, 1);
        const layers = Math.max(1, Math.ceil(FOOTPRINT / (F * unitBytes(type, d, false))));
        const held = scope(() => {
          const one = packUnits(normal(random, [F, d], 1, 0, 1 / Math.sqrt(d)), normal(random, [F, d], 2), { type });
          const bits = one.bitsSync();
          const records = Array.from({ length: layers }, () => {
            const copy = Tensor.empty(device, 'u8', one.shape);
            copy.writeBits(bits);
            return copy.keep();
          });
          return { records, x: normal(random, [R, d], 3).keep() };
        });
        let seed = 12345;
        const drawn = (): Int32Array =>
          Int32Array.from({ length: (R * F) / N }, () => {
            seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
            return (seed >>> 8) % N;
          });
        const choices = held.records.map(() => Tensor.from(device, drawn(), [R, F / N], 'i32').keep());
        const steps = held.records.map((records, k) =>
          capture(device, () => noGrad(() => sparseUnits(held.x, choices[k], records, { type, block: N }).y)),
        );
        const counts = sparseUnits(held.x, choices[0], held.records[0], { type, block: N }).touched.dataSync();
        const touched = (counts[0] + counts[1]) * (unitBytes(type, d, false) / 2);
        // Other units every time: those of the last time would still be cached.
        const prepare = (k: number): void => choices[k].writeBits(drawn());
        const ours: Runner = { steps, bytes: touched, prepare, free: () => {} };
        const read = reading(device, Math.max(touched, 1 << 20));
        const r = await interleave(rate(ours, touched, 0.15), rate(read, read.bytes, 0.15), 3);
        read.free();
        for (const step of steps) {
          step.dispose();
          step.result.dispose();
        }
        for (const t of [...held.records, ...choices, held.x, random.tensor]) t.dispose();
        yield {
          name: `sparse-units/${type}/d${d}/F${F}/N${N}/R${R}`,
          ...r,
          peerName: 'plain read',
          unit: 'GB/s touched',
          touchedBytes: touched,
          denseBytes: F * unitBytes(type, d, false),
        };
      }
}

/** One row of the factored layer, its E in blocks, against the form with a product weight. */
async function* factored(device: Device): AsyncIterable<Row> {
  for (const [d, S] of [
    [1024, 16],
    [4096, 32],
    [9216, 96],
  ])
    for (const compute of ['bf16', 'f32'] as const) {
      const random = new RandomState(device, 1);
      const [D, E, x] = [
        normal(random, [S, d], 1).keep(),
        normal(random, [d / S, d], 2).keep(),
        normal(random, [1, d], 3).keep(),
      ];
      const packed = quantise(E, compute === 'bf16' ? 'bf16x16' : 'f32x16').keep();
      const runner = (e: Tensor): Runner => {
        const steps = [capture(device, () => noGrad(() => factoredLinear(x, D, e, { compute, out: 'f32' })))];
        const free = (): void => {
          steps[0].dispose();
          steps[0].result.dispose();
        };
        return { steps, bytes: 0, free };
      };
      const [ours, formed] = [runner(packed), runner(E)];
      const r = await interleave(rate(ours, 2 * d * d, 0.15), rate(formed, 2 * d * d, 0.15), 3);
      ours.free();
      formed.free();
      for (const t of [D, E, x, packed, random.tensor]) t.dispose();
      yield { name: `factored/${compute}/1x${d}x${d}/S${S}`, ...r, peerName: 'product weight', unit: 'GFLOP/s' };
    }
}

export async function* run(): AsyncIterable<Row> {
  const device = openDevice('cpu');
  for (const part of [oneRow, moreRows, manyRows, units, factored]) yield* part(device);
}
