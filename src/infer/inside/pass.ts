/** One forward pass over a text, captured with everything that is to be seen of it. */
import type { Device } from '../../backend/device.ts';
import type { Model } from '../../model/model.ts';
import { forwardContext, type ParamTree } from '../../nn/index.ts';
import {
  type Captured,
  type Compute,
  gather,
  logsumexp,
  noGrad,
  record,
  reshape,
  scope,
  slice,
  type Tensor,
  topk,
  watch,
  zeros,
} from '../../tensor/index.ts';
import { type RoutedTensors, type UnitTensors, Watcher } from './watcher.ts';

/** Rows of logits that exist at a time. */
const ROWS = 64;

export interface Seen {
  readonly routed: Map<string, RoutedTensors>;
  readonly units: Map<string, UnitTensors>;
}

interface Results {
  /** Of each row: log of the sum of exp, the logit of the token that follows, the likeliest tokens. */
  readonly chunks: { lse: Tensor; next: Tensor; values: Tensor; indices: Tensor }[];
  readonly decoder: Seen;
  readonly encoder: Seen | null;
}

/** What a pass is run on. Encoder and decoder texts are padded to the pass's lengths. */
export interface PassText {
  readonly decoder: readonly number[];
  readonly encoder?: readonly number[];
  /** Decoder tokens up to this index see each other. */
  readonly visible?: number;
}

export interface PassSizes {
  /** Tokens of the decoder, and of the encoder (0: none). */
  readonly length: number;
  readonly encoder: number;
  /** Likeliest tokens of each place. */
  readonly top: number;
  /** Whether texts may begin with tokens that see each other. */
  readonly ahead: boolean;
}

const padded = (ids: readonly number[], length: number): Int32Array => {
  const out = new Int32Array(length);
  out.set(ids.slice(0, length));
  return out;
};
const ones = (count: number, length: number): Int32Array => new Int32Array(length).fill(1, 0, Math.min(count, length));

export class InsidePass {
  /** What the pass reads of the parameters, decoder and encoder together. */
  readonly watchers: readonly Watcher[];
  readonly sizes: PassSizes;
  private readonly inputs: Tensor[];
  private readonly step: Captured<Results>;

  constructor(device: Device, model: Model, params: ParamTree, options: PassSizes & { compute: Compute }) {
    const { length, encoder, top, ahead, compute } = options;
    this.sizes = options;
    const ids = (n: number): Tensor => zeros(device, [1, Math.max(1, n)], 'i32').keep();
    const [tokens, segments, next, visible] = [ids(length), ids(length), ids(length), ids(length)];
    const [given, used, places] = [ids(encoder), ids(encoder), ids(encoder)];
    this.inputs = [tokens, segments, next, visible, given, used, places];
    model.prepare(device);
    const watchers = [new Watcher(params, model.spec.width), new Watcher(params, model.spec.width)];
    this.watchers = watchers;
    const c = forwardContext({ device, compute });
    this.step = record(device, () =>
      noGrad(() => {
        const batch = { inputs: tokens, segments, positions: null, visible: ahead ? visible : null };
        const [own, others] = watchers;
        const memory =
          model.encoder && encoder > 0
            ? watch(others.see, () => {
                const states = model.encoder!.encode(params, { inputs: given, segments: used, positions: places }, c);
                return model.encoder!.crossKeyValues(params, states, c);
              })
            : null;
        const chunks = watch(own.see, () => {
          const h = memory
            ? model.encoder!.decode(params, batch, memory, used, c)
            : model.hidden(params, { ...batch, encoder: null }, c);
          const rows = reshape(h, [length, h.shape[h.rank - 1]]);
          return Array.from({ length: Math.ceil(length / ROWS) }, (_, k) =>
            // The logits of many rows are large: they go as soon as they are summed up.
            scope(() => {
              const [from, to] = [k * ROWS, Math.min(length, (k + 1) * ROWS)];
              const logits = model.logits(params, slice(rows, 0, from, to), c);
              const followers = reshape(slice(next, 1, from, to), [to - from, 1]);
              return { lse: logsumexp(logits), next: gather(logits, 1, followers), ...topk(logits, top) };
            }),
          );
        });
        const seen = (w: Watcher): Seen => ({ routed: w.routed, units: w.units });
        return { chunks, decoder: seen(own), encoder: memory ? seen(others) : null };
      }),
    );
  }

  async run(text: PassText): Promise<Results> {
    this.put(text);
    await this.step.run();
    return this.step.result;
  }

  dispose(): void {
    this.step.dispose();
    const { chunks, decoder, encoder } = this.step.result;
    for (const { lse, next, values, indices } of chunks) for (const t of [lse, next, values, indices]) t.dispose();
    for (const seen of [decoder, encoder]) {
      for (const { index, slot, gates } of seen?.routed.values() ?? [])
        for (const t of [index, slot, gates]) t?.dispose();
      for (const { fired, strength, pick } of seen?.units.values() ?? [])
        for (const t of [fired, strength, pick]) t?.dispose();
    }
    for (const t of this.inputs) t.dispose();
  }

  private put({ decoder, encoder = [], visible = -1 }: PassText): void {
    const { length } = this.sizes;
    const own = Math.max(1, this.sizes.encoder);
    const values = [
      padded(decoder, length),
      ones(decoder.length, length),
      padded(decoder.slice(1), length),
      new Int32Array(length).fill(-1).fill(visible, 0, visible + 1),
      padded(encoder, own),
      ones(encoder.length, own),
      Int32Array.from({ length: own }, (_, k) => k),
    ];
    this.inputs.forEach((t, k) => {
      t.writeBits(values[k]);
    });
  }
}
