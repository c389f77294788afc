/**
 * Decoding of dense models at batch 1 and reading of prompts, int8 and int4, against llama.cpp's Q8_0 and Q4_0 of the
 * same shapes, taking turns; and the share of the read bandwidth that this machine has, measured in the same run.
 * Ours goes through the engine's passes as serving does: one native call a token, which chooses the token too.
 */
import type { CpuDevice } from '../src/backend/cpu/device.ts';
import { Passes } from '../src/infer/engine/index.ts';
import { disposeTree } from '../src/nn/index.ts';
import { type BlockType, capture, sum, zeros } from '../src/tensor/index.ts';
import { modelOf, openCpu, randomBlocks, randomGguf, SHAPES, type Shape, weightBytes } from './decode-models.ts';
import { interleave, type Row } from './harness.ts';
import { Llama, noLlama } from './llama.ts';

const TYPES: readonly { ours: BlockType; peer: 'q8_0' | 'q4_0' }[] = [
  { ours: 'q8', peer: 'q8_0' },
  { ours: 'q4', peer: 'q4_0' },
];
const PAGE = 32;
/** The likeliest token, drawn where the logits lie. */
export const greedy = { temperature: 0, number: 0, never: [] };

/** Bytes a second of reading memory that no cache holds: the sum of a gigabyte. */
export async function readBandwidth(device: CpuDevice): Promise<() => Promise<number>> {
  const big = zeros(device, [1 << 28]).keep();
  const step = capture(device, () => ({ total: sum(big) }));
  return async () => {
    const start = performance.now();
    await step.run();
    return (big.size * 4) / ((performance.now() - start) / 1000);
  };
}

class Ours {
  readonly bytes: number;
  private readonly passes: Passes;
  private readonly free: () => void;

  constructor(device: CpuDevice, shape: Shape, type: BlockType) {
    const model = modelOf(shape);
    const params = randomBlocks(device, model, type);
    this.bytes = weightBytes(params);
    const maxPages = shape.context / PAGE;
    const sizes = { page: PAGE, pages: maxPages, maxPages, sequences: 1 };
    this.passes = new Passes(device, model, params, { compute: 'bf16', format: 'bf16', ...sizes });
    this.passes.place(
      0,
      Array.from({ length: maxPages }, (_, k) => k),
    );
    this.free = () => disposeTree(params);
  }

  async decode(count: number): Promise<number> {
    let token = 65;
    for (let t = 0; t < 4; t++) token = await this.next(token, t);
    const start = performance.now();
    for (let t = 4; t < 4 + count; t++) token = await this.next(token, t);
    return (1000 * count) / (performance.now() - start);
  }

  private async next(token: number, position: number): Promise<number> {
    return (await this.passes.draw([{ token, sequence: 0, position }], [0], [greedy])).tokens[0];
  }

  async prefill(count: number): Promise<number> {
    const rows = Array.from({ length: count }, (_, k) => ({ token: 300 + (k % 200), sequence: 0, position: k }));
    const start = performance.now();
    await this.passes.run(rows, [count - 1]);
    return (1000 * count) / (performance.now() - start);
  }

  close(): void {
    this.passes.dispose();
    this.free();
  }
}

async function* measure(what: 'decode' | 'prefill'): AsyncIterable<Row> {
  const device = openCpu();
  const { threads } = device.info();
  if (noLlama) console.error(noLlama);
  const only = process.env.ANSATZ_BENCH_ONLY?.split(',');
  for (const shape of SHAPES)
    for (const { ours: type, peer: ggml } of TYPES) {
      if (only && !only.includes(shape.name) && !only.includes(type)) continue;
      const llama = noLlama ? null : await Llama.open(await randomGguf(shape, ggml), threads, shape.context);
      const ours = new Ours(device, shape, type);
      const bandwidth = what === 'decode' ? await readBandwidth(device) : null;
      const count = what === 'prefill' ? 512 : shape.name === '3B' ? 24 : 64;
      const speeds: number[] = [];
      const turn = async (): Promise<number> => {
        if (bandwidth) speeds.push(await bandwidth());
        return ours[what](count);
      };
      const r = await interleave(turn, llama && (() => llama[what](count)), 5);
      const read = Math.max(0, ...speeds);
      yield {
        name: `${what}/${shape.name}/${type}`,
        ...{ ours: r.ours, peer: r.peer, ratio: r.ratio, spread: r.spread, unit: 'tokens/s' },
        ...(llama ? { peerName: `llama.cpp ${ggml}` } : {}),
        gigabytes: ours.bytes / 1e9,
        ...(bandwidth
          ? { gbps: (r.ours * ours.bytes) / 1e9, readGbps: read / 1e9, bandwidthShare: (r.ours * ours.bytes) / read }
          : {}),
      };
      ours.close();
      await llama?.close();
    }
}

export const run = (): AsyncIterable<Row> => measure('decode');
export const runPrefill = (): AsyncIterable<Row> => measure('prefill');
