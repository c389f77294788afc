/** The decoder of a model: by rows where every part of it can, by computing anew where one cannot. */
import type { Device } from '../backend/device.ts';
import { AnsatzError } from '../backend/errors.ts';
import { layoutTraits, type Model } from '../model/model.ts';
import { blockSlot } from '../model/spec.ts';
import { decodesRows, type LowRank, type ParamTree, withLowRank } from '../nn/index.ts';
import { type BlockType, type CacheFormat, type Compute, noGrad, quantise, type Tensor } from '../tensor/index.ts';
import { disposeBlocks, inBlocks } from './blocks.ts';
import { bytesOf, type Decoding, Engine, Passes, poolsOf } from './engine/index.ts';
import { Recompute } from './recompute.ts';
import { DraftModel } from './speculation/draft-model.ts';
import { Window } from './window.ts';

/** Tokens of a page. */
const PAGE = 32;

export interface DecodingOptions {
  readonly compute: Compute;
  /** Bits of keys and values in the cache. */
  readonly cache?: CacheFormat;
  /** Bytes for the cache; at least one full sequence fits. */
  readonly cacheBytes?: number;
  /** Sequences at a time. */
  readonly sequences?: number;
  /** Rows of a step at most. */
  readonly rows?: number;
  /** Tokens drafted at a time, for requests with a drafter. */
  readonly drafts?: number;
  /** A small model with the same tokens that guesses for this one; its parameters stay the caller's. */
  readonly draft?: { readonly model: Model; readonly params: ParamTree; readonly compute: Compute };
  /** Whether texts may begin with tokens that see each other (prefix-LM). */
  readonly ahead?: boolean;
  /**
   * How matrices lie: in blocks that keep all of their bits (by default), in blocks of fewer, or as they are ('plain').
   * Only blocks make a request's text independent of what else is served.
   */
  readonly weights?: BlockType | 'plain';
  /** Compute the whole text anew for every token, whatever the spec. */
  readonly recompute?: boolean;
}

/** Null when every part of a model decodes by rows; else what does not. */
export function whyNotRows(model: Model): string | null {
  const { spec } = model;
  const kinds = Array.from({ length: spec.depth }, (_, k) => blockSlot(spec, 'attention', k));
  const wrong = kinds.find((a) => !decodesRows(a));
  if (wrong) return `attention ${wrong.kind}`;
  const { rows } = layoutTraits(spec);
  const layout = typeof spec.layout === 'string' ? spec.layout : spec.layout.kind;
  if (!(typeof rows === 'function' ? rows(spec) : rows)) return `layout ${layout}`;
  // Layers may refuse what others of the spec bring (positions that turn heads in pieces only).
  try {
    poolsOf(model);
    return null;
  } catch (error) {
    if (error instanceof AnsatzError) return error.message;
    throw error;
  }
}

export interface OpenDecoding extends Decoding {
  /** Whether it computes everything anew for every token, and why. */
  readonly recomputes: string | null;
  /**
   * Takes differences of low rank: requests that name the variant are computed with them, beside those of others and over
   * the same weights. Absent where everything is computed anew.
   * @throws AnsatzError when the decoder has no such weights.
   */
  adapt?(differences: ReadonlyMap<string, LowRank>): Promise<DecodingVariant>;
  /** Frees what it has, after the step in progress. */
  close(): Promise<void>;
}

export interface DecodingVariant {
  readonly variant: number;
  /** The differences as the decoder has them. */
  readonly differences: ReadonlyMap<string, LowRank>;
  /** Bytes that it takes of its own. */
  readonly bytes: number;
  /** Frees them, once no request names it any more. */
  close(): void;
}

/** The format of the cache, tokens of a page and its bytes in all layers, and pages of the longest text. */
export function cacheSizes(
  model: Model,
  compute: Compute,
  format: CacheFormat = compute,
): { format: CacheFormat; page: number; each: number; maxPages: number } {
  const { own, memory } = poolsOf(model);
  const { context } = model.spec;
  // What an encoder reads may stand before a text, and is as long at most.
  const longest = model.encoder?.before ? 2 * context : context;
  const each = bytesOf(own, PAGE, format) + bytesOf(memory, PAGE, format);
  return { format, page: PAGE, each, maxPages: Math.ceil(longest / PAGE) };
}

/** Blocks that keep all bits that products use. */
const wholeBlocks = (compute: Compute): BlockType => (compute === 'bf16' ? 'bf16x16' : 'f32x16');

export function openDecoding(device: Device, model: Model, params: ParamTree, o: DecodingOptions): OpenDecoding {
  const { context, vocab } = model.spec;
  const why = o.recompute ? 'asked to' : whyNotRows(model);
  if (why) {
    const window = new Window(device, model, params, o.compute, o.ahead ?? false);
    const engine = new Recompute(window, context);
    return {
      recomputes: why,
      submit: (r) => engine.submit(r),
      stats: () => engine.stats(),
      close: async () => {
        await engine.close();
        window.dispose();
      },
    };
  }
  const { format, each, maxPages } = cacheSizes(model, o.compute, o.cache);
  const sequences = o.sequences ?? 8;
  const wanted = o.cacheBytes === undefined ? sequences * maxPages : Math.floor(o.cacheBytes / Math.max(1, each));
  const pages = Math.max(maxPages, wanted);
  const sizes = { page: PAGE, pages, sequences };
  const weights = o.weights ?? wholeBlocks(o.compute);
  const used = weights === 'plain' ? params : inBlocks(model, params, { matrices: weights });
  const passes = new Passes(device, model, used, { compute: o.compute, format, maxPages, ...sizes });
  const drafting = o.draft && openDraft(device, o.draft, sequences);
  const draftModel = drafting?.drafter;
  const engine = new Engine({ passes, vocab, context, rows: o.rows, drafts: o.drafts, draftModel, ...sizes });
  return {
    recomputes: null,
    submit: (r) => engine.submit(r),
    stats: () => engine.stats(),
    adapt: (differences) => adapt(passes, used, differences, weights === 'plain' ? null : wholeBlocks(o.compute)),
    close: async () => {
      await engine.close();
      passes.dispose();
      drafting?.dispose();
      disposeBlocks(used, params);
    },
  };
}

/** Factors lie in blocks as the weights do, so that a row's result is the same whatever rows are beside it. */
async function adapt(
  passes: Passes,
  params: ParamTree,
  differences: ReadonlyMap<string, LowRank>,
  type: BlockType | null,
): Promise<DecodingVariant> {
  const own: Tensor[] = [];
  const close = (): void => {
    for (const t of own) t.dispose();
  };
  const block = (t: Tensor): Tensor => {
    if (!type) return t;
    const made = noGrad(() => quantise(t, type)).keep();
    own.push(made);
    return made;
  };
  try {
    const by = new Map([...differences].map(([path, d]) => [path, { ...d, a: block(d.a), b: block(d.b) }]));
    const variant = await passes.add(withLowRank(params, by));
    const bytes = own.reduce((n, t) => n + t.storage.memory.bytes, 0);
    return {
      ...{ variant, bytes, differences: by },
      close: () => {
        passes.drop(variant);
        close();
      },
    };
  } catch (error) {
    close();
    throw error;
  }
}

/** The small model with pages for as many full sequences as the large one serves. */
function openDraft(
  device: Device,
  { model, params, compute }: NonNullable<DecodingOptions['draft']>,
  sequences: number,
) {
  const why = whyNotRows(model) ?? (model.encoder ? 'an encoder' : null);
  if (why) throw new AnsatzError(`a model with ${why} cannot draft for another`);
  const { context, vocab } = model.spec;
  const { format, maxPages } = cacheSizes(model, compute);
  const sizes = { page: PAGE, pages: sequences * maxPages, sequences };
  const used = inBlocks(model, params, { matrices: wholeBlocks(compute) });
  const passes = new Passes(device, model, used, { compute, format, maxPages, ...sizes });
  return {
    drafter: new DraftModel({ passes, vocab, context, page: PAGE, sequences }),
    dispose: () => {
      passes.dispose();
      disposeBlocks(used, params);
    },
  };
}
