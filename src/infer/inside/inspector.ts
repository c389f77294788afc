/** Looks into a model while it reads a text: what it expected at each place, which experts and units fired. */
import type { Device } from '../../backend/device.ts';
import { AnsatzError } from '../../backend/errors.ts';
import type { Model } from '../../model/model.ts';
import type { ParamTree } from '../../nn/index.ts';
import type { CacheFormat, Compute } from '../../tensor/index.ts';
import { whyNotRows } from '../decoding.ts';
import { weightSizes } from './bytes.ts';
import { InsidePass, type PassSizes, type PassText } from './pass.ts';
import { type LayerSeen, readExpected, readLayers } from './read.ts';
import { type StateReads, stateReads } from './state.ts';

/** Tokens that are looked at in one go. */
export const MOST_TOKENS = 512;

export interface Inspection {
  readonly tokens: readonly number[];
  /** Tokens at the start that were left out. */
  readonly cut: number;
  /** Log-probability of each token after those before it; null for the first. */
  readonly logprobs: readonly (number | null)[];
  /** What the model held likeliest at each place (the first has none), and after the last token. */
  readonly top: readonly (readonly { readonly token: number; readonly logprob: number }[])[];
  readonly layers: readonly LayerSeen[];
  /** The layers of an encoder and the tokens that it read. */
  readonly encoder: { readonly tokens: readonly number[]; readonly layers: readonly LayerSeen[] } | null;
  readonly bytes: {
    /** All parameters that decoding may read. */
    readonly weights: number;
    /** Read for each token: of weights (bytes.ts), and of what is kept of those before it (state.ts). */
    readonly token: readonly number[];
    readonly cache: readonly number[];
  };
}

export interface InspectorOptions {
  readonly compute: Compute;
  readonly cache?: CacheFormat;
  readonly ahead?: boolean;
}

export class Inspector {
  private readonly device: Device;
  private readonly model: Model;
  private readonly params: ParamTree;
  private readonly options: InspectorOptions;
  private readonly stateReads: StateReads;
  /** Captured passes, the one used last at the end. */
  private readonly passes: InsidePass[] = [];
  private queue: Promise<unknown> = Promise.resolve();

  constructor(device: Device, model: Model, params: ParamTree, options: InspectorOptions) {
    [this.device, this.model, this.params, this.options] = [device, model, params, options];
    const { compute, cache = compute === 'bf16' ? 'bf16' : 'f32' } = options;
    this.stateReads = whyNotRows(model) === null ? stateReads(model, cache) : () => 0;
  }

  /** One text after the other. @throws AnsatzError when there is no text. */
  inspect(text: PassText, top = 8): Promise<Inspection> {
    if (text.decoder.length === 0) throw new AnsatzError('there is no text to look at');
    const made = this.queue.then(() => this.look(text, top));
    this.queue = made.catch(() => {});
    return made;
  }

  async dispose(): Promise<void> {
    await this.queue;
    for (const pass of this.passes.splice(0)) pass.dispose();
  }

  private async look(whole: PassText, top: number): Promise<Inspection> {
    const { context, vocab } = this.model.spec;
    const most = Math.min(MOST_TOKENS, context);
    const cut = Math.max(0, whole.decoder.length - most);
    const text = {
      decoder: whole.decoder.slice(cut),
      encoder: (whole.encoder ?? []).slice(-most),
      visible: (whole.visible ?? -1) - cut,
    };
    const pass = this.passFor(text, Math.min(top, vocab));
    const seen = await pass.run(text);
    const T = text.decoder.length;
    const expected = await readExpected(seen.chunks, Math.min(top, vocab));
    const layers = await readLayers(seen.decoder, T);
    const sizes = weightSizes(pass.watchers[0]);
    return {
      tokens: text.decoder,
      cut,
      logprobs: [null, ...expected.next.slice(0, T - 1)],
      top: [[], ...expected.top.slice(0, T)],
      layers,
      encoder: seen.encoder && {
        tokens: text.encoder,
        layers: await readLayers(seen.encoder, text.encoder.length),
      },
      bytes: {
        weights: sizes.all,
        token: Array.from({ length: T }, (_, t) => {
          let bytes = sizes.always;
          for (const l of layers)
            if (l.kind === 'experts') bytes += l.active[t] * (sizes.expert.get(l.layer) ?? 0);
            else {
              const units = sizes.units.get(l.layer);
              if (units) bytes += units.bytes * (units.skips ? l.active[t] : 1);
            }
          return Math.round(bytes);
        }),
        cache: Array.from({ length: T }, (_, t) => this.stateReads(cut + t + 1, text.encoder.length)),
      },
    };
  }

  /** A pass of the right size: two are kept, since each holds memory for its activations. */
  private passFor(text: PassText, top: number): InsidePass {
    const { context } = this.model.spec;
    // Parts that do not decode by rows may want the length that they were trained with.
    const fixed = whyNotRows(this.model) !== null;
    const size = (n: number): number =>
      fixed ? context : Math.min(context, 2 ** Math.ceil(Math.log2(Math.max(16, n))));
    const sizes: PassSizes = {
      length: size(text.decoder.length),
      encoder: this.model.encoder ? size(text.encoder!.length) : 0,
      top,
      ahead: this.options.ahead ?? false,
    };
    const at = this.passes.findIndex(
      ({ sizes: s }) => s.length === sizes.length && s.encoder === sizes.encoder && s.top === sizes.top,
    );
    const [known] = at >= 0 ? this.passes.splice(at, 1) : [];
    const pass =
      known ?? new InsidePass(this.device, this.model, this.params, { ...sizes, compute: this.options.compute });
    this.passes.push(pass);
    if (this.passes.length > 2) this.passes.shift()!.dispose();
    return pass;
  }
}
