/** The decoder of a model: by rows where every part of it can, by computing anew where one cannot. */
import type { Device } from '../backend/device.ts';
import { layoutTraits, type Model } from '../model/model.ts';
import { blockSlot, type ModelSpec } from '../model/spec.ts';
import { decodesRows, type ParamTree } from '../nn/index.ts';
import type { CacheFormat, Compute } from '../tensor/index.ts';
import { bytesOf, type Decoding, Engine, Passes, poolsOf } from './engine/index.ts';
import { Recompute } from './recompute.ts';
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
  /** Whether texts may begin with tokens that see each other (prefix-LM). */
  readonly ahead?: boolean;
  /** Compute the whole text anew for every token, whatever the spec. */
  readonly recompute?: boolean;
}

/** Null when every part of a spec decodes by rows; else what does not. */
export function whyNotRows(spec: ModelSpec): string | null {
  const kinds = Array.from({ length: spec.depth }, (_, k) => blockSlot(spec, 'attention', k));
  const wrong = kinds.find((a) => !decodesRows(a));
  if (wrong) return `attention ${wrong.kind}`;
  const { rows } = layoutTraits(spec);
  const layout = typeof spec.layout === 'string' ? spec.layout : spec.layout.kind;
  return (typeof rows === 'function' ? rows(spec) : rows) ? null : `layout ${layout}`;
}

export interface OpenDecoding extends Decoding {
  /** Whether it computes everything anew for every token, and why. */
  readonly recomputes: string | null;
  /** Frees what it has, after the step in progress. */
  close(): Promise<void>;
}

export function openDecoding(device: Device, model: Model, params: ParamTree, o: DecodingOptions): OpenDecoding {
  const { context, vocab } = model.spec;
  const why = o.recompute ? 'asked to' : whyNotRows(model.spec);
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
  const format = o.cache ?? (o.compute === 'bf16' ? 'bf16' : 'f32');
  const { own, memory } = poolsOf(model);
  const maxPages = Math.ceil(context / PAGE);
  const sequences = o.sequences ?? 8;
  const each = bytesOf(own, PAGE, format) + bytesOf(memory, PAGE, format);
  const wanted = o.cacheBytes === undefined ? sequences * maxPages : Math.floor(o.cacheBytes / Math.max(1, each));
  const pages = Math.max(maxPages, wanted);
  const sizes = { page: PAGE, pages, sequences };
  const passes = new Passes(device, model, params, { compute: o.compute, format, maxPages, ...sizes });
  const engine = new Engine({ passes, vocab, context, rows: o.rows, drafts: o.drafts, ...sizes });
  return {
    recomputes: null,
    submit: (r) => engine.submit(r),
    stats: () => engine.stats(),
    close: async () => {
      await engine.close();
      passes.dispose();
    },
  };
}
