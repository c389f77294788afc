/** What there is to know of a model at a glance, from its run folder: nothing has to be opened for it. */
import { buildModel } from '../model/model.ts';
import { blockSlot, type ModelSpec } from '../model/spec.ts';
import { countParams, type SlotConfig } from '../nn/index.ts';
import { parseTrainConfig } from '../train/config.ts';
import { objectiveOf } from '../train/objective.ts';
import { RunFolder } from '../train/run/folder.ts';
import { FIM_MIDDLE } from '../tricks/fim/fim.ts';
import type { ServedModel } from './models/served.ts';
import type { ModelCard } from './wire.ts';

/** Options that say how large a part is. */
const telling = ['heads', 'kvHeads', 'window', 'hidden', 'experts', 'active', 'block'];

/** "moe, 8 experts, 2 active". */
function described({ kind, ...options }: SlotConfig): string {
  const sizes = telling.flatMap((name) => (Number(options[name]) > 0 ? [`${options[name]} ${name}`] : []));
  return [kind, ...sizes].join(', ');
}

function kindsOf(spec: ModelSpec): ModelCard['kinds'] {
  const of = (slot: 'attention' | 'ffn'): string[] => [
    ...new Set(Array.from({ length: spec.depth }, (_, k) => described(blockSlot(spec, slot, k)))),
  ];
  return { attention: of('attention'), ffn: of('ffn'), positions: [spec.positions.kind], norm: [spec.norm.kind] };
}

/** `open`: the model itself, where it is open. */
export function modelCard(id: string, path: string, open: ServedModel | undefined): ModelCard {
  const run = RunFolder.open(path);
  const config = parseTrainConfig(run.config);
  const { model: spec, objective, precision } = config;
  const model = buildModel(spec);
  const parameters = countParams(model);
  const { specials } = objectiveOf(config);
  const { step, bitsPerByte } = run.summary();
  return {
    id,
    object: 'model_card',
    parameters,
    layout: typeof spec.layout === 'string' ? spec.layout : spec.layout.kind,
    depth: spec.depth,
    width: spec.width,
    context: spec.context,
    vocab: spec.vocab,
    kinds: kindsOf(spec),
    objective: objective.kind,
    precision,
    weightBytes: open?.weightBytes ?? 4 * parameters,
    base: open?.base ?? null,
    step: open?.opened.checkpoint.step ?? (step > 0 ? step : null),
    bitsPerByte: bitsPerByte ?? null,
    infill: specials.includes(FIM_MIDDLE) || objective.kind === 'ul2' || (open ? hasHoleTokens(open) : false),
    encoder: model.encoder !== undefined,
    recomputes: open?.decoding.recomputes ?? null,
  };
}

/** Models of others say it with their tokens. */
const hasHoleTokens = (m: ServedModel): boolean => m.tokenizer.specialIds.has(FIM_MIDDLE);
