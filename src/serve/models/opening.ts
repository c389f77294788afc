/** Runs as models that can be served: on their own, or as an adapter beside the model that it was learned for. */
import { AnsatzError } from '../../backend/errors.ts';
import { adapts, isFor, openAdapter } from '../../infer/adapters.ts';
import { weightBytes } from '../../infer/compress/targets.ts';
import { cacheSizes, openDecoding, whyNotRows } from '../../infer/decoding.ts';
import { type CheckpointChoice, type OpenRun, openRun } from '../../infer/load.ts';
import { disposeTree, withLowRank } from '../../nn/index.ts';
import { AdapterDecoding } from './adapter-decoding.ts';
import { type ModelInfo, ServedModel, type ServingOptions, sameTokens } from './served.ts';

/** Tokens drafted at a time. */
const DRAFTS = 6;
/** A cache that is not given a size holds all sequences at full length, up to this. */
const USUAL_CACHE = 1 << 30;

function usualCache({ model, config }: OpenRun, sequences: number): number {
  if (whyNotRows(model)) return USUAL_CACHE;
  const { each, maxPages } = cacheSizes(model, config.precision);
  return Math.min(USUAL_CACHE, sequences * maxPages * each);
}

/** A run with a decoder of its own. */
export function serveRun(info: ModelInfo, opened: OpenRun, options: ServingOptions, draft?: OpenRun): ServedModel {
  const { tokenizer, device, model, params, config } = opened;
  if (draft) sameTokens(draft.tokenizer, tokenizer, info.name);
  const decoding = openDecoding(device, model, params, {
    compute: config.precision,
    ahead: opened.objective.shape.visible,
    sequences: options.sequences,
    cacheBytes: options.cacheBytes ?? usualCache(opened, options.sequences),
    drafts: DRAFTS,
    ...(draft && { draft: { model: draft.model, params: draft.params, compute: draft.config.precision } }),
  });
  return new ServedModel(info, opened, options, {
    ...{ decoding, bytes: weightBytes(params), base: null },
    dispose: () => disposeTree(params),
  });
}

/** The model, of those given, that the adapter in a run was learned for. */
export function baseOf(path: string, models: readonly ServedModel[]): ServedModel | undefined {
  const from = adapts(path);
  return from === null ? undefined : models.find((m) => m.base === null && isFor(from, m.opened));
}

/** A run as a model: kept apart from its base where that is open and it can be, else with weights of its own. */
export async function open(
  info: ModelInfo,
  path: string,
  models: readonly ServedModel[],
  options: ServingOptions,
  o: CheckpointChoice & { draft?: OpenRun } = {},
): Promise<ServedModel> {
  const { draft, ...choice } = o;
  const base = baseOf(path, models);
  return (
    (base && (await besideOf(info, path, base, options, choice))) ??
    serveRun(info, await openRun(path, choice), options, draft)
  );
}

async function besideOf(
  info: ModelInfo,
  path: string,
  base: ServedModel,
  options: ServingOptions,
  choice: CheckpointChoice,
): Promise<ServedModel | null> {
  if (!base.decoding.adapt) return null;
  const adapter = await openAdapter(path, base.opened, choice);
  if (!adapter) return null;
  try {
    const variant = await base.decoding.adapt(adapter.differences);
    // What looks at whole texts shares what the decoder has.
    const params = withLowRank(base.opened.params, variant.differences);
    const { differences: _, dispose, ...opened } = adapter;
    dispose();
    return new ServedModel(info, { ...opened, params }, options, {
      ...{ decoding: new AdapterDecoding(base.decoding, variant), base: base.info.name, bytes: variant.bytes },
      dispose: () => variant.close(),
    });
  } catch (error) {
    adapter.dispose();
    // Its layers keep the weights in a form of their own.
    if (error instanceof AnsatzError) return null;
    throw error;
  }
}
