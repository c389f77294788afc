/**
 * What of a spec other formats can say. A decoder of the Llama kind (with or without a mixture of experts, as Mixtral)
 * and an encoder-decoder of the T5 kind become a few numbers; anything else is refused with the field that is in the way.
 */
import { AnsatzError } from '../../backend/errors.ts';
import { layoutOptions } from '../../model/model.ts';
import { blockSlot, headWidth, type ModelSpec } from '../../model/spec.ts';
import { buildParametrisation, type SlotConfig } from '../../nn/index.ts';
import { canonicalJson, type JsonObject } from '../../train/run/canonical.ts';
import { type MoeOptions, moeSchema, resolve } from '../../tricks/moe/options.ts';

/** Factors that our forward pass has and the others' lack: they are multiplied into the weights. */
export interface Factors {
  readonly embedding: number;
  readonly logits: number;
  /** On what attention and feed-forward layers add. */
  readonly branch: number;
  /** On q.k. */
  readonly attention: number;
}

interface Common {
  readonly width: number;
  readonly depth: number;
  readonly vocab: number;
  readonly context: number;
  readonly heads: number;
  readonly headWidth: number;
  readonly eps: number;
  readonly normScale: boolean;
  readonly hidden: number;
  readonly activation: string;
  readonly tied: boolean;
  /** Parameter that holds the output matrix. */
  readonly head: 'embed.weight' | 'head.weight';
  readonly factors: Factors;
}

export interface Rope {
  readonly theta: number;
  readonly interleaved: boolean;
  readonly scaling: RopeScaling | null;
}

export interface RopeScaling {
  readonly method: 'linear' | 'ntk' | 'yarn' | 'llama3';
  readonly factor: number;
  /** Length before it was scaled. */
  readonly trained: number;
  readonly betaFast: number;
  readonly betaSlow: number;
}

export interface DecoderFacts extends Common {
  readonly family: 'decoder';
  readonly kvHeads: number;
  readonly attentionBias: boolean;
  /** A token sees less than this many back; 0 sees all. */
  readonly window: number;
  /** Queries and keys are normalised, with the epsilon of the other norms. */
  readonly qkNorm: boolean;
  readonly ffnBias: boolean;
  readonly rope: Rope;
  /** `hidden` is then that of an expert; `gate` multiplies its output. */
  readonly moe: { readonly experts: number; readonly active: number; readonly gate: number } | null;
}

export interface T5Facts extends Common {
  readonly family: 't5';
  readonly encoderDepth: number;
  readonly gated: boolean;
  readonly buckets: number;
  readonly maxDistance: number;
}

export type Facts = DecoderFacts | T5Facts;

/** Throws one line: what cannot be said, and what to change. */
export function cannotSay(field: string, why: string, hint: string): never {
  throw new AnsatzError(`this model cannot be exported: ${field}: ${why}`, { hint });
}

type Options = Readonly<Record<string, unknown>>;

/** The slot that all blocks have. */
function sameEverywhere(spec: ModelSpec, slot: 'attention' | 'ffn'): SlotConfig {
  const first = blockSlot(spec, slot, 0);
  const text = (s: SlotConfig): string => canonicalJson(s as JsonObject);
  for (let k = 1; k < spec.depth; k++)
    if (text(blockSlot(spec, slot, k)) !== text(first))
      cannotSay(
        `model.overrides: block ${k} has another ${slot} than block 0`,
        'other formats have one kind of block',
        'train without overrides',
      );
  return first;
}

interface Attention {
  readonly heads: number;
  readonly kvHeads: number;
  readonly bias: boolean;
  readonly window: number;
  readonly qkNorm?: number;
}

function attentionOf(slot: SlotConfig, field: string): Attention {
  const { kind, window, heads, kvHeads, bias, qkNorm } = slot as SlotConfig & Options;
  if (kind !== 'full')
    cannotSay(`${field}.kind '${kind}'`, 'other formats know softmax attention only', "use attention 'full'");
  return {
    heads: heads as number,
    kvHeads: (kvHeads ?? heads) as number,
    bias: bias === true,
    window: (window ?? 0) as number,
    ...(qkNorm !== undefined && { qkNorm: qkNorm as number }),
  };
}

function common(spec: ModelSpec, attention: { heads: number }): Omit<Common, 'hidden' | 'activation'> {
  const { norm, head } = spec;
  if (norm.kind !== 'rms')
    cannotSay(`model.norm '${norm.kind}'`, 'Llama and T5 models have RMSNorm', "use model.norm 'rms'");
  if (head.kind !== 'linear')
    cannotSay(`model.head '${head.kind}'`, 'other formats have one output matrix', "use model.head 'linear'");
  const { width, depth, vocab, context } = spec;
  const { scales } = buildParametrisation(spec.parametrisation, { width, depth, headWidth: headWidth(spec) });
  const { embedding, logits, branch } = scales;
  const { eps, scale } = norm as SlotConfig & { eps: number; scale: boolean };
  return {
    ...{ width, depth, vocab, context, heads: attention.heads, headWidth: headWidth(spec), eps, normScale: scale },
    // One matrix cannot be both when its two uses have different factors.
    tied: spec.tied && embedding === logits,
    head: spec.tied ? 'embed.weight' : 'head.weight',
    factors: { embedding, logits, branch, attention: scales.attention(headWidth(spec)) },
  };
}

/** @throws AnsatzError when the spec is of neither kind. */
export function factsOf(spec: ModelSpec): Facts {
  const layout = typeof spec.layout === 'string' ? spec.layout : spec.layout.kind;
  if (layout === 'decoder') return decoderFacts(spec);
  if (layout === 'encoder-decoder') return t5Facts(spec);
  return cannotSay(
    `model.layout '${layout}'`,
    'it has no equal elsewhere',
    "use layout 'decoder' or 'encoder-decoder'",
  );
}

function decoderFacts(spec: ModelSpec): DecoderFacts {
  const attention = attentionOf(sameEverywhere(spec, 'attention'), 'model.attention');
  const { bias: attentionBias, kvHeads, window } = attention;
  const parts = common(spec, attention);
  const qkNorm = attention.qkNorm !== undefined;
  if (qkNorm && attention.qkNorm !== parts.eps)
    cannotSay(
      `model.attention.qkNorm ${attention.qkNorm}`,
      `a Qwen3 model has one epsilon for all norms, here ${parts.eps}`,
      `set it to ${parts.eps}`,
    );
  const shared = { ...parts, family: 'decoder', kvHeads, attentionBias, window, qkNorm, rope: ropeOf(spec) } as const;
  const ffn = sameEverywhere(spec, 'ffn');
  if (window && (qkNorm || attentionBias || (ffn as SlotConfig & Options).bias === true))
    cannotSay(
      `model.attention.window ${window}`,
      'models in which every layer has a window (Mistral) have neither biases nor normalised queries',
      'set model.attention.window to 0',
    );
  if (qkNorm && (ffn.kind === 'moe' || (ffn as SlotConfig & Options).bias === true))
    cannotSay(
      'model.attention.qkNorm',
      'models with normalised queries have gated feed-forward layers without a bias (Qwen3)',
      'leave qkNorm, the experts or the bias out',
    );
  if (ffn.kind === 'moe') return { ...shared, ffnBias: false, ...mixture(ffn, attentionBias) };
  const { hidden, activation, bias } = ffn as SlotConfig & Options;
  if (ffn.kind !== 'glu')
    cannotSay(
      `model.ffn.kind '${ffn.kind}'`,
      'a Llama model has a gated feed-forward layer or experts',
      "use ffn 'glu', or 'moe' with experts 'glu'",
    );
  const layer = { hidden: hidden as number, activation: activation as string, ffnBias: bias === true, moe: null };
  return { ...shared, ...layer };
}

/** Mixtral: softmax over the logits of the chosen experts, no bias, no shared experts, no token dropped. */
function mixture(ffn: SlotConfig, attentionBias: boolean): Pick<DecoderFacts, 'hidden' | 'activation' | 'moe'> {
  const { kind: _, ...options } = ffn;
  const o: MoeOptions = resolve(moeSchema.parse(options), true);
  const no = (field: string, why: string, hint: string): never => cannotSay(`model.ffn.${field}`, why, hint);
  const expert = o.expert as SlotConfig & Options;
  if (expert.kind !== 'glu') no(`expert '${expert.kind}'`, 'Mixtral has gated experts', "use expert 'glu'");
  if (o.gate !== 'renormalised')
    no(`gate '${o.gate}'`, 'Mixtral divides gates by their sum', "use gate 'renormalised' with active of 2 or more");
  if (o.shared) no(`shared ${o.shared}`, 'Mixtral has no shared experts', 'set ffn.shared to 0');
  if (o.groups > 1) no(`groups ${o.groups}`, 'Mixtral chooses among all experts', 'set ffn.groups to 1');
  if (o.biasRate > 0) no('biasRate', 'Mixtral has no balancing bias on its choice', 'balance by ffn.balanceLoss');
  if (o.routing.kind === 'capacity' && o.routing.evalFactor !== 0)
    no('routing capacity', 'Mixtral drops no token', "use routing 'dropless', or evalFactor 0");
  if (attentionBias) cannotSay('model.attention.bias', 'Mixtral has no biases', 'set model.attention.bias to false');
  return {
    hidden: expert.hidden as number,
    activation: expert.activation as string,
    moe: { experts: o.experts, active: o.active, gate: o.gateScale },
  };
}

function ropeOf({ positions }: ModelSpec): Rope {
  const { kind, fraction, interleaved, theta, ...rest } = positions as SlotConfig & Options;
  if (kind !== 'rope' && kind !== 'rope-scaled')
    cannotSay(`model.positions '${kind}'`, 'a Llama model has rotary positions', "use positions 'rope'");
  if (fraction !== 1)
    cannotSay(`model.positions.fraction ${fraction}`, 'a Llama model turns whole heads', 'set it to 1');
  const base = { theta: theta as number, interleaved: interleaved === true };
  return { ...base, scaling: kind === 'rope' ? null : (rest as unknown as RopeScaling) };
}

interface Stacks {
  readonly encoderDepth?: number;
  readonly encoderAttention?: SlotConfig;
  readonly encoderFfn?: SlotConfig;
  readonly encoderPositions?: SlotConfig;
  readonly crossEvery: number;
  readonly crossHeads?: number;
  readonly crossKvHeads?: number;
  readonly merged: boolean;
}

function t5Facts(spec: ModelSpec): T5Facts {
  const o = layoutOptions(spec) as Stacks;
  const slot = sameEverywhere(spec, 'attention');
  const attention = attentionOf(slot, 'model.attention');
  const encoder = attentionOf(o.encoderAttention ?? spec.attention, 'model.layout.encoderAttention');
  const no = (field: string, why: string, hint: string): never => cannotSay(`model.${field}`, why, hint);
  if (attention.bias || encoder.bias) no('attention.bias', 'T5 has no biases', 'set model.attention.bias to false');
  if (attention.window || encoder.window)
    no(`attention.window ${attention.window || encoder.window}`, 'T5 sees all tokens', 'set it to 0');
  if (attention.qkNorm || encoder.qkNorm) no('attention.qkNorm', 'T5 does not normalise queries', 'leave it out');
  const { heads } = attention;
  const all = [attention.kvHeads, encoder.heads, encoder.kvHeads, o.crossHeads ?? heads, o.crossKvHeads ?? heads];
  if (all.some((n) => n !== heads))
    no('attention.kvHeads', `T5 has ${heads} heads of queries, keys and values everywhere`, 'use one number of heads');
  if (o.merged) no('layout.merged', 'T5 has cross-attention of its own', 'set layout.merged to false');
  if (o.crossEvery !== 1) no('layout.crossEvery', 'every T5 decoder block looks at the encoder', 'set it to 1');
  const ffn = sameEverywhere(spec, 'ffn');
  if (canonicalJson((o.encoderFfn ?? spec.ffn) as JsonObject) !== canonicalJson(ffn as JsonObject))
    no('layout.encoderFfn', 'both stacks of T5 have the same feed-forward layer', 'leave it out');
  if (ffn.kind !== 'glu' && ffn.kind !== 'mlp')
    no(`ffn.kind '${ffn.kind}'`, 'T5 has plain or gated feed-forward layers', "use ffn 'glu' or 'mlp'");
  const { hidden, activation, bias } = ffn as SlotConfig & Options;
  if (bias) no('ffn.bias', 'T5 has no biases', 'set model.ffn.bias to false');
  const decoder = biasOf(spec.positions, 'model.positions', false);
  const other = biasOf(o.encoderPositions ?? spec.positions, 'model.layout.encoderPositions', true);
  if (decoder.buckets !== other.buckets || decoder.maxDistance !== other.maxDistance)
    no('layout.encoderPositions', 'both stacks of T5 have the same buckets', 'use the same buckets and maxDistance');
  return {
    ...common(spec, attention),
    family: 't5',
    // T5's tied output has a factor of its own: the output matrix is always written.
    tied: false,
    encoderDepth: o.encoderDepth ?? spec.depth,
    gated: ffn.kind === 'glu',
    hidden: hidden as number,
    activation: activation as string,
    ...decoder,
  };
}

function biasOf(positions: SlotConfig, field: string, encoder: boolean): { buckets: number; maxDistance: number } {
  const { kind, buckets, maxDistance, bidirectional = encoder } = positions as SlotConfig & Options;
  if (kind !== 't5-bias')
    cannotSay(`${field} '${kind}'`, 'T5 has a bias by bucket of distance', `use ${field} 't5-bias'`);
  if (bidirectional !== encoder)
    cannotSay(
      `${field}.bidirectional ${bidirectional}`,
      `T5's ${encoder ? 'encoder has buckets for both sides' : 'decoder has buckets for the past only'}`,
      `set it to ${encoder}`,
    );
  return { buckets: buckets as number, maxDistance: maxDistance as number };
}
