/**
 * Decoding of sparse models beside dense ones of the same shape and precision (Jaszczur et al. 2021, Table 1): tokens of
 * independent texts of up to 32 tokens (the paper timed texts of 16), 1 to 64 at a time, and several tokens of one text at once, as verification of drafts wants them.
 * Reported are the speed-up, the bytes of weights that a token touches, and the share that these bytes, read at the
 * speed of a plain sum, have of the time: the roofline.
 */
import { totalmem } from 'node:os';
import type { CpuDevice } from '../src/backend/cpu/device.ts';
import { Passes } from '../src/infer/engine/index.ts';
import { disposeTree } from '../src/nn/index.ts';
import { unitBytes } from '../src/tensor/index.ts';
import { greedy, readBandwidth } from './decode-dense.ts';
import { openCpu } from './decode-models.ts';
import { median, type Row } from './harness.ts';
import { type Built, build, CONTEXT, type Kind, SPARSE_SHAPES, type SparseShape } from './sparse-models.ts';

const PAGE = 32;
const BATCHES = [1, 2, 4, 8, 16, 32, 64];
const VERIFIED = [2, 4, 8];
const TYPE = 'q8';

/** What is measured: so many rows of independent texts, or of one. */
interface Case {
  readonly name: string;
  readonly rows: number;
  readonly texts: boolean;
}
const CASES: readonly Case[] = [
  ...BATCHES.map((rows) => ({ name: `batch${rows}`, rows, texts: true })),
  ...VERIFIED.map((rows) => ({ name: `verify${rows}`, rows, texts: false })),
];

interface Measured {
  readonly seconds: number;
  /** Bytes of weights that a pass touched. */
  readonly touched: number;
}

class Decoder {
  readonly built: Built;
  private readonly shape: SparseShape;
  private readonly passes: Passes;
  private readonly watched: Passes | null;
  private token = 1;

  constructor(device: CpuDevice, shape: SparseShape, kind: Kind) {
    this.shape = shape;
    this.built = build(device, shape, kind, TYPE);
    const { model, params } = this.built;
    const maxPages = CONTEXT / PAGE;
    const sequences = Math.max(...BATCHES);
    const sizes = { page: PAGE, pages: maxPages * sequences, maxPages, sequences };
    const open = (observe?: (name: string) => boolean): Passes => {
      const passes = new Passes(device, model, params, { compute: 'bf16', format: 'bf16', ...sizes, observe });
      for (let s = 0; s < sequences; s++)
        passes.place(
          s,
          Array.from({ length: maxPages }, (_, k) => s * maxPages + k),
        );
      return passes;
    };
    this.passes = open();
    this.watched = kind === 'sparse' ? open((name) => name.endsWith('.touched')) : null;
  }

  /** Seconds of a pass in the middle of texts whose tokens have nothing to do with each other. */
  async measure(c: Case, passes: number): Promise<Measured> {
    const times: number[] = [];
    let touched = 0;
    await this.pass(this.passes, c, 0);
    for (let k = 1; k <= passes; k++) {
      const start = performance.now();
      await this.pass(this.passes, c, k);
      times.push((performance.now() - start) / 1000);
    }
    if (!this.watched) return { seconds: median(times), touched: this.built.always };
    for (let k = 0; k < 4; k++) {
      await this.pass(this.watched, c, k);
      touched += (await this.unitBytes()) / 4;
    }
    return { seconds: median(times), touched: this.built.always + touched };
  }

  close(): void {
    this.passes.dispose();
    this.watched?.dispose();
    disposeTree(this.built.params);
  }

  private async pass(passes: Passes, { rows, texts }: Case, k: number): Promise<void> {
    const at = (texts ? k : k * rows) % (CONTEXT - rows);
    const all = Array.from({ length: rows }, (_, r) => {
      this.token = (Math.imul(this.token, 1664525) + 1013904223) >>> 0;
      return { token: this.token % 32000, sequence: texts ? r : 0, position: texts ? at : at + r };
    });
    const wanted = all.map((_, r) => r);
    await passes.draw(
      all,
      wanted,
      wanted.map(() => greedy),
    );
  }

  /** Of all layers: a first part for every unit that was read, a second one where the ReLU let it through. */
  private async unitBytes(): Promise<number> {
    const part = unitBytes(TYPE, this.shape.width, false) / 2;
    let bytes = 0;
    for (const touched of (await this.watched!.observed()).values()) bytes += part * (touched[0] + touched[1]);
    return bytes;
  }
}

interface Result {
  readonly dense: Measured;
  readonly sparse: Measured;
  readonly ratio: number;
}

/** Both models in memory, taking turns: the ratio is the median of those of neighbouring turns. */
async function together(dense: Decoder, sparse: Decoder, c: Case): Promise<Result> {
  const turns: { dense: Measured; sparse: Measured }[] = [];
  for (let k = 0; k < 5; k++) turns.push({ dense: await dense.measure(c, 6), sparse: await sparse.measure(c, 20) });
  const middle = (of: (t: (typeof turns)[number]) => number): number => median(turns.map(of));
  return {
    dense: { seconds: middle((t) => t.dense.seconds), touched: turns[0].dense.touched },
    sparse: { seconds: middle((t) => t.sparse.seconds), touched: middle((t) => t.sparse.touched) },
    ratio: middle((t) => t.dense.seconds / t.sparse.seconds),
  };
}

interface Sizes {
  readonly parameters: number;
  readonly bytes: number;
}

async function* resultsOf(
  device: CpuDevice,
  shape: SparseShape,
  cases: readonly Case[],
): AsyncIterable<{ c: Case; result: Result; dense: Sizes; sparse: Sizes }> {
  const open = (kind: Kind): Decoder => new Decoder(device, shape, kind);
  const sizes = ({ built }: Decoder): Sizes => ({ parameters: built.parameters, bytes: built.bytes });
  const dense = open('dense');
  // The sparse model is the smaller one.
  if (2 * dense.built.bytes < totalmem() / 2) {
    const sparse = open('sparse');
    for (const c of cases)
      yield { c, result: await together(dense, sparse, c), dense: sizes(dense), sparse: sizes(sparse) };
    dense.close();
    sparse.close();
    return;
  }
  const before: Measured[] = [];
  for (const c of cases) before.push(await dense.measure(c, 4));
  dense.close();
  const sparse = open('sparse');
  for (const [k, c] of cases.entries()) {
    const measured = await sparse.measure(c, 40);
    const result = { dense: before[k], sparse: measured, ratio: before[k].seconds / measured.seconds };
    yield { c, result, dense: sizes(dense), sparse: sizes(sparse) };
  }
  sparse.close();
}

export async function* run(): AsyncIterable<Row> {
  const device = openCpu();
  // Names of shapes and of cases: 800M, 17B, batch1, verify4.
  const only = process.env.ANSATZ_BENCH_ONLY?.split(',') ?? [];
  const chosen = <T extends { readonly name: string }>(all: readonly T[]): readonly T[] =>
    all.some((x) => only.includes(x.name)) ? all.filter((x) => only.includes(x.name)) : all;
  const cases = chosen(CASES);
  const bandwidth = await readBandwidth(device);
  for (const shape of chosen(SPARSE_SHAPES)) {
    let read = 0;
    for (let k = 0; k < 5; k++) read = Math.max(read, await bandwidth());
    for await (const { c, result, dense, sparse } of resultsOf(device, shape, cases)) {
      read = Math.max(read, await bandwidth());
      const roofline = (m: Measured): number => m.touched / read / m.seconds;
      yield {
        name: `decode-sparse/${shape.name}/${TYPE}/${c.name}`,
        ...{ ours: c.rows / result.sparse.seconds, peer: c.rows / result.dense.seconds, ratio: result.ratio },
        ...{ peerName: 'our dense', unit: 'tokens/s' },
        milliseconds: result.sparse.seconds * 1000,
        megabytes: result.sparse.touched / 1e6,
        bytesRatio: result.dense.touched / result.sparse.touched,
        readGbps: read / 1e9,
        roofline: roofline(result.sparse),
        denseMilliseconds: result.dense.seconds * 1000,
        denseMegabytes: result.dense.touched / 1e6,
        denseRoofline: roofline(result.dense),
        parameters: sparse.parameters,
        denseParameters: dense.parameters,
      };
    }
  }
}
