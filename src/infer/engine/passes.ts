/**
 * The device side of decoding: passes over rows as captured programs, one for each number of rows that occurs; and what
 * an encoder reads, once a text.
 */
import type { Device } from '../../backend/device.ts';
import { AnsatzError } from '../../backend/errors.ts';
import type { Model } from '../../model/model.ts';
import { type ForwardContext, forwardContext, type ParamTree, type RowPass } from '../../nn/index.ts';
import {
  type CacheFormat,
  type Captured,
  type Compute,
  cast,
  drawRows,
  embedding,
  noGrad,
  pagedAppend,
  pagedWrite,
  type RowIndex,
  record,
  reshape,
  scope,
  Tensor,
  zeros,
} from '../../tensor/index.ts';
import { indexOn, type PoolRequests, Pools, poolsOf } from './pools.ts';
import { type Ask, MOST_RANGES } from './sequence.ts';
import { disposeVariant, type PassResult, type Reader, type Variant } from './variants.ts';

/** Rows of a pass are rounded up to one of these: a program is captured for each that occurs. */
const SIZES = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512];
const sizeFor = (n: number): number => SIZES.find((s) => s >= n) ?? n;
/** Rows whose logits are wanted: all of them, or a few of many, for which few programs will do. */
const OUTPUTS = [1, 4, 16, 64, 256];
const outputsFor = (wanted: number, size: number): number => Math.min(size, OUTPUTS.find((s) => s >= wanted) ?? size);

export const MAX_ROWS = SIZES[SIZES.length - 1];

export interface PassOptions {
  readonly compute: Compute;
  readonly format: CacheFormat;
  /** Tokens of a page. */
  readonly page: number;
  /** Pages of the pool, and of the longest sequence; sequences at a time. */
  readonly pages: number;
  readonly maxPages: number;
  readonly sequences: number;
  /** Pages for what encoders read; by default as many as decoders have. */
  readonly memoryPages?: number;
  /** Names of what layers show of themselves (`ForwardContext.taps`) that `observed()` is to give. */
  readonly observe?: (name: string) => boolean;
}

/** One row of a pass. */
export interface Row {
  readonly token: number;
  /** Which sequence: a row of the page table. */
  readonly sequence: number;
  readonly position: number;
  /** Last position that it sees; its own when absent. */
  readonly reach?: number;
  /** Whose parameters it is computed with (Passes.add); absent: the passes' own. */
  readonly variant?: number;
  /** Tokens of the sequence's memory; 0: it has none. */
  readonly memory?: number;
}

/** Which rows' logits are wanted, and how tokens are drawn from them; null: not at all. */
interface Wanted {
  readonly wanted: readonly number[];
  readonly asks: readonly (Ask | null)[];
}

/** What a pass gives for the rows that were wanted. */
export interface Outcome {
  readonly tokens: Int32Array;
  /** Null when every token was drawn. */
  readonly logits: Float32Array | null;
}

/** The first elements of a tensor, as another one. */
const first = (t: Tensor, shape: readonly number[]): Tensor => new Tensor(t.storage, t.dtype, shape, t.offset);
const firstRows = ({ table, sequence, position, reach, page }: RowIndex, n: number): RowIndex => ({
  table,
  sequence: first(sequence, [n]),
  position: first(position, [n]),
  reach: first(reach, [n]),
  page,
});

export class Passes {
  readonly requests: PoolRequests;
  readonly model: Model;
  private readonly device: Device;
  private readonly options: PassOptions;
  private readonly variants = new Map<number, Variant>();
  private readonly own: Pools;
  private readonly memory: Pools | null;
  private readonly index: RowIndex;
  private readonly memoryIndex: RowIndex;
  private readonly inputs: Tensor;
  private readonly segments: Tensor;
  /** Places of the rows' tokens among those of their own kind, where an encoder's stand before them; else their positions. */
  private readonly places: Tensor;
  /** Which rows' logits are wanted. */
  private readonly wanted: Tensor;
  /** How tokens are drawn from those. */
  private readonly temperatures: Tensor;
  private readonly numbers: Tensor;
  private readonly never: Tensor;
  private latest: PassResult | null = null;
  private added = 0;
  private last: Promise<unknown> = Promise.resolve();

  constructor(device: Device, model: Model, params: ParamTree, options: PassOptions) {
    [this.device, this.model, this.options] = [device, model, options];
    const { page, pages, format, sequences, maxPages, memoryPages = pages } = options;
    this.requests = poolsOf(model);
    this.own = new Pools(device, this.requests.own, pages, page, format);
    this.memory = model.encoder ? new Pools(device, this.requests.memory, memoryPages, page, format) : null;
    this.index = indexOn(device, MAX_ROWS, sequences, maxPages, page);
    this.memoryIndex = indexOn(device, MAX_ROWS, sequences, maxPages, page);
    const ids = (): Tensor => zeros(device, [MAX_ROWS], 'i32').keep();
    [this.inputs, this.segments, this.wanted, this.numbers] = [ids(), ids(), ids(), ids()];
    this.temperatures = zeros(device, [MAX_ROWS]).keep();
    this.never = zeros(device, [MAX_ROWS, 2 * MOST_RANGES], 'i32').keep();
    this.places = model.encoder?.before ? ids() : this.index.position;
    model.prepare(device);
    this.take(params);
  }

  /**
   * Takes other parameters for the same model: rows and texts that name them are computed with those, over the same pages.
   * The passes' own are 0.
   */
  add(params: ParamTree): Promise<number> {
    return this.alone(async () => this.take(params));
  }

  private take(params: ParamTree): number {
    const constants = this.requests.constants > 0 ? this.makeConstants(params) : [];
    this.variants.set(this.added, { params, constants, programs: new Map(), readers: new Map() });
    return this.added++;
  }

  /** Forgets parameters that no row needs any more; they stay the caller's. */
  drop(variant: number): void {
    const known = this.variants.get(variant);
    this.variants.delete(variant);
    if (known) disposeVariant(known);
  }

  /** Says where the tokens of a sequence lie, or (`memory`) those of the text that it looks at. */
  place(sequence: number, pages: readonly number[], memory = false): void {
    const { maxPages } = this.options;
    if (pages.length > maxPages) throw new AnsatzError(`a sequence of ${pages.length} pages, ${maxPages} is the most`);
    const { storage, offset } = (memory ? this.memoryIndex : this.index).table;
    this.device.write(storage.memory, offset + sequence * maxPages, Int32Array.from(pages));
  }

  /**
   * Computes rows, whose state joins the pages, and gives the logits of those at `wanted`, one after another.
   * Rows of one sequence must stand together, in order. Those with the same parameters are one pass.
   */
  async run(rows: readonly Row[], wanted: readonly number[]): Promise<Float32Array> {
    const asks = wanted.map(() => null);
    return (await this.draw(rows, wanted, asks)).logits ?? new Float32Array(0);
  }

  /** The same with tokens drawn as `asks` say, one for each of `wanted`; logits come only where an ask is null. */
  draw(rows: readonly Row[], wanted: readonly number[], asks: readonly (Ask | null)[]): Promise<Outcome> {
    return this.alone(() => this.passes(rows, { wanted, asks }));
  }

  /** One thing after another: all of them write to the same inputs. */
  private alone<T>(make: () => Promise<T>): Promise<T> {
    const made = this.last.then(make);
    this.last = made.catch(() => {});
    return made;
  }

  private async passes(rows: readonly Row[], { wanted, asks }: Wanted): Promise<Outcome> {
    const variants = [...new Set(rows.map((r) => r.variant ?? 0))];
    if (variants.length === 1) return this.pass(variants[0], rows, { wanted, asks });
    const { vocab } = this.model.spec;
    const tokens = new Int32Array(wanted.length);
    const logits = asks.every((a) => a) ? null : new Float32Array(wanted.length * vocab);
    for (const variant of variants) {
      const places = new Map<number, number>();
      rows.forEach((r, k) => {
        if ((r.variant ?? 0) === variant) places.set(k, places.size);
      });
      const own = wanted.flatMap((row, k) => (places.has(row) ? [{ k, at: places.get(row)! }] : []));
      const made = await this.pass(
        variant,
        [...places.keys()].map((k) => rows[k]),
        { wanted: own.map((w) => w.at), asks: own.map((w) => asks[w.k]) },
      );
      own.forEach(({ k }, n) => {
        tokens[k] = made.tokens[n];
        if (made.logits) logits!.set(made.logits.subarray(n * vocab, (n + 1) * vocab), k * vocab);
      });
    }
    return { tokens, logits };
  }

  private async pass(variant: number, rows: readonly Row[], { wanted, asks }: Wanted): Promise<Outcome> {
    const size = sizeFor(rows.length);
    const outputs = wanted.length === rows.length ? size : outputsFor(wanted.length, size);
    if (size > MAX_ROWS) throw new AnsatzError(`a pass of ${rows.length} rows, ${MAX_ROWS} is the most`);
    const put = (t: Tensor, n: number, value: (k: number) => number): void =>
      this.device.write(
        t.storage.memory,
        t.offset,
        Int32Array.from({ length: n }, (_, k) => value(k)),
      );
    // Rows that fill a program up stand for nothing.
    put(this.inputs, size, (k) => rows[k]?.token ?? 0);
    put(this.segments, size, (k) => (rows[k]?.sequence ?? -1) + 1);
    put(this.index.sequence, size, (k) => rows[k]?.sequence ?? -1);
    put(this.index.position, size, (k) => rows[k]?.position ?? 0);
    put(this.index.reach, size, (k) => rows[k]?.reach ?? rows[k]?.position ?? 0);
    if (this.memory) {
      put(this.memoryIndex.sequence, size, (k) => (rows[k]?.memory ? rows[k].sequence : -1));
      put(this.memoryIndex.position, size, (k) => rows[k]?.position ?? 0);
      put(this.memoryIndex.reach, size, (k) => Math.max(0, (rows[k]?.memory ?? 0) - 1));
    }
    if (this.model.encoder?.before)
      put(this.places, size, (k) => Math.max(0, (rows[k]?.position ?? 0) - (rows[k]?.memory ?? 0)));
    put(this.wanted, outputs, (k) => wanted[k] ?? 0);
    this.putAsks(asks, outputs);
    const program = this.program(this.variantOf(variant), size, outputs);
    await program.run();
    this.latest = program.result;
    const { logits, drawn } = program.result;
    const tokens = ((await drawn.data()) as Int32Array).subarray(0, wanted.length);
    if (asks.every((a) => a)) return { tokens, logits: null };
    const all = (await logits.data()) as Float32Array;
    return { tokens, logits: all.subarray(0, wanted.length * this.model.spec.vocab) };
  }

  /** Rows that nobody asks about are drawn as the likeliest. */
  private putAsks(asks: readonly (Ask | null)[], outputs: number): void {
    const temperature = Float32Array.from({ length: outputs }, (_, k) => asks[k]?.temperature ?? 0);
    const number = Int32Array.from({ length: outputs }, (_, k) => (asks[k]?.number ?? 0) | 0);
    const never = new Int32Array(outputs * 2 * MOST_RANGES);
    asks.forEach((a, k) => {
      if (a) never.set(a.never, k * 2 * MOST_RANGES);
    });
    for (const [t, values] of [
      [this.temperatures, temperature],
      [this.numbers, number],
      [this.never, never],
    ] as const)
      this.device.write(t.storage.memory, t.offset, values);
  }

  /** What layers showed of themselves in the pass before; rows that fill it up included. */
  async observed(): Promise<Map<string, ArrayLike<number>>> {
    const entries = Object.entries(this.latest?.observed ?? {});
    return new Map(await Promise.all(entries.map(async ([name, t]) => [name, await t.data()] as const)));
  }

  /** Reads a text with the encoder; what decoders look at lies in `pages` then. */
  async read(tokens: readonly number[], pages: readonly number[], variant = 0): Promise<void> {
    if (!this.memory) throw new AnsatzError('this model has no encoder');
    const length = 2 ** Math.ceil(Math.log2(Math.max(16, tokens.length)));
    const values = [
      Int32Array.from({ length }, (_, k) => tokens[k] ?? 0),
      Int32Array.from({ length }, (_, k) => (k < tokens.length ? 1 : 0)),
      Int32Array.from({ length }, (_, k) => Math.min(k, this.model.spec.context - 1)),
      Int32Array.from({ length }, (_, k) => (k < tokens.length ? 0 : -1)),
      Int32Array.from({ length: this.options.maxPages }, (_, k) => pages[k] ?? 0),
    ];
    const reader = this.reader(this.variantOf(variant), length);
    reader.inputs.forEach((t, k) => {
      t.writeBits(values[k]);
    });
    await reader.step.run();
  }

  dispose(): void {
    for (const variant of this.variants.values()) disposeVariant(variant);
    for (const { table, sequence, position, reach } of [this.index, this.memoryIndex])
      for (const t of [table, sequence, position, reach]) t.dispose();
    for (const t of [this.inputs, this.segments, this.places, this.wanted]) t.dispose();
    for (const t of [this.temperatures, this.numbers, this.never]) t.dispose();
    this.own.dispose();
    this.memory?.dispose();
  }

  private variantOf(variant: number): Variant {
    const known = this.variants.get(variant);
    if (!known) throw new AnsatzError('these parameters have been closed');
    return known;
  }

  private program({ params, constants, programs }: Variant, size: number, outputs: number): Captured<PassResult> {
    const key = `${size}:${outputs}`;
    const known = programs.get(key);
    if (known) return known;
    const { model, device } = this;
    const wanted = first(this.wanted, [outputs]);
    const step = record(device, () =>
      noGrad(() => {
        let next = 0;
        const { c, h } = this.forward(params, size, () => constants[next++]);
        const picked = embedding(reshape(h, [size, h.shape[h.rank - 1]]), wanted);
        const { observe } = this.options;
        const observed = Object.fromEntries([...(c.taps ?? [])].filter(([name]) => observe!(name)));
        const logits = cast(reshape(model.logits(params, picked, c), [outputs, model.spec.vocab]), 'f32');
        const [temperatures, numbers] = [this.temperatures, this.numbers].map((t) => first(t, [outputs]));
        const drawn = drawRows(logits, temperatures, numbers, first(this.never, [outputs, 2 * MOST_RANGES]));
        return { logits, drawn, observed };
      }),
    );
    programs.set(key, step);
    return step;
  }

  /** Hidden states [1, size, d] of the first `size` rows. */
  private forward(params: ParamTree, size: number, constant: RowPass['constant']): { c: ForwardContext; h: Tensor } {
    const { model, device } = this;
    const index = firstRows(this.index, size);
    const rows: RowPass = {
      ...this.own.handOut(),
      index,
      constant,
      memory: this.memory ? { ...this.memory.handOut(), index: firstRows(this.memoryIndex, size) } : null,
      seen: (this.options.maxPages * this.options.page) / 2,
    };
    const { compute, observe } = this.options;
    const c = forwardContext({ device, compute, rows, taps: observe ? new Map() : null });
    const [inputs, segments, positions] = [this.inputs, this.segments, this.places].map((t) => first(t, [1, size]));
    return { c, h: model.hidden(params, { inputs, segments, positions }, c) };
  }

  /** Runs a pass over a row that stands for nothing, and keeps what its layers make of their parameters. */
  private makeConstants(params: ParamTree): Tensor[] {
    const made: Tensor[] = [];
    this.device.write(this.index.sequence.storage.memory, this.index.sequence.offset, Int32Array.of(-1));
    scope(() =>
      noGrad(() => {
        this.forward(params, 1, (make) => {
          const t = make().keep();
          made.push(t);
          return t;
        });
      }),
    );
    return made;
  }

  /** The program that reads texts of up to `length` tokens. */
  private reader({ params, readers }: Variant, length: number): Reader {
    const known = readers.get(length);
    if (known) return known;
    const { model, device } = this;
    const ids = (shape: number[]): Tensor => zeros(device, shape, 'i32').keep();
    const texts = [ids([1, length]), ids([1, length]), ids([1, length])];
    const made = [...texts, ids([length]), ids([1, this.options.maxPages])];
    const [inputs, segments, positions, sequence, table] = made;
    const place = first(positions, [length]);
    const index: RowIndex = { table, sequence, position: place, reach: place, page: this.options.page };
    const step = record(device, () =>
      noGrad(() => {
        const c = forwardContext({ device, compute: this.options.compute });
        const states = model.encoder!.encode(params, { inputs, segments, positions }, c);
        const pools = this.memory!.handOut();
        if (model.encoder!.before) {
          const width = states.shape[2];
          pagedWrite(pools.vectors(width), reshape(states, [length, width]), index);
          return null;
        }
        for (const m of model.encoder!.crossKeyValues(params, states, c)) {
          if (!m) continue;
          const [, , kvHeads, width] = m.key.shape;
          const { pool, format } = pools.keyValues(kvHeads, width);
          const rows = (t: Tensor): Tensor => reshape(t, [length, kvHeads, width]);
          pagedAppend(pool, rows(m.key), rows(m.value), index, { heads: kvHeads, kvHeads, width, format });
        }
        return null;
      }),
    );
    const reader = { step, inputs: made };
    readers.set(length, reader);
    return reader;
  }
}
