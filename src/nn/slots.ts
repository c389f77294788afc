/**
 * A model is a layout with slots: attention, ffn, norm, positions, head. What can stand in a slot registers itself here with
 * its options and how to build it; a trick is one more registration. Shared code never asks which kind it has.
 */
import type { z } from 'zod';
import type { Device } from '../backend/device.ts';
import { AnsatzError } from '../backend/errors.ts';
import type { Tensor } from '../tensor/index.ts';
import type { ForwardContext } from './context.ts';
import { type KindConfig, kindSchema } from './kinds.ts';
import type { Module, ParamTree } from './module.ts';
import type { Scales } from './parametrise.ts';

/** Sizes that every part may need. */
export interface ModelDims {
  readonly width: number;
  readonly depth: number;
  readonly vocab: number;
  readonly context: number;
  /** Whether the output matrix is the embedding matrix. */
  readonly tied: boolean;
}

/** Normalises rows; gives the activation dtype. */
export interface Norm extends Module {
  forward(p: ParamTree, x: Tensor, c: ForwardContext): Tensor;
}

/** Gives residual + f(x), so that the sum can be fused into the last product. x [B,T,d] activations, residual f32. */
export interface Mixer extends Module {
  forward(p: ParamTree, x: Tensor, residual: Tensor, c: ForwardContext): Tensor;
}

/** How positions enter; a kind implements what it needs. */
export interface Positions extends Module {
  /** Adds to the embeddings [B,T,d]. */
  embed?(p: ParamTree, x: Tensor, c: ForwardContext): Tensor;
  /** Turns the query heads and the key heads that stand first in a packed [B,T,heads+kvHeads+...,D] tensor. */
  rotate?(qkv: Tensor, heads: number, kvHeads: number, c: ForwardContext): Tensor;
  /** The same positions with another base of their periods, for layers that look further than the others. */
  rebased?(theta: number): Positions;
  /** Longest sequence that rotate() can turn at once; attention to longer ones goes in pieces. */
  readonly reach?: number;
  /**
   * For attention in pieces: turns part of a sequence, x [B,T,H,D], by the positions start, start + 1, ... counted from
   * an origin that queries and keys of a piece share. Asked for when layers are built; positions lie in [-before, after).
   */
  pieces?(before: number, after: number): TurnPiece;
  /**
   * For attention to blocks by rows, x [1,R,H,D]: as `pieces`, turned by the rows' own positions within their blocks,
   * counted from `shift`.
   */
  wrapped?(block: number, shifts: readonly number[]): TurnRows;
  /** Makes its constants on a device, before a step is captured there. */
  prepare?(device: Device): void;
  /** Bias on attention logits by relative distance, f32 [H, Tq+Tk-1]; p is the model's `positions` part. */
  bias?(p: ParamTree, heads: number, tq: number, tk: number, c: ForwardContext): Tensor;
}

export type TurnRows = (x: Tensor, part: 'query' | 'key', shift: number, c: ForwardContext) => Tensor;
export type TurnPiece = (x: Tensor, part: 'query' | 'key', start: number, c: ForwardContext) => Tensor;

/** From final hidden states to logits and loss. `table` is the embedding matrix [V,d], which a tied head shares. */
export interface Head extends Module {
  /** [..., V] in f32. */
  logits(p: ParamTree, table: Tensor, h: Tensor, c: ForwardContext): Tensor;
  /** sum(weights * cross-entropy) as a scalar, and the unweighted loss of each position. */
  loss(
    p: ParamTree,
    table: Tensor,
    h: Tensor,
    targets: Tensor,
    weights: Tensor,
    c: ForwardContext,
  ): { loss: Tensor; rows: Tensor };
}

export interface SlotContext {
  readonly dims: ModelDims;
  /** The positions of the model, for the parts that apply them. */
  readonly positions: Positions;
  /** Width of an attention head. */
  readonly headWidth: number;
  /** Query heads of the attention layers, for positions with parameters of each head. */
  readonly heads?: number;
  /** Which block the part is for, counted from 0; depth for parts after the last block. */
  readonly layer: number;
  /** Factors that keep activations and updates the same size at any width and depth. */
  readonly scales: Scales;
  /** Coefficient of lse^2 in the loss. */
  readonly zLoss: number;
  /** False in an encoder, where every token sees both sides. True when absent. */
  readonly causal?: boolean;
}

interface Slots {
  norm: Norm;
  attention: Mixer;
  ffn: Mixer;
  positions: Positions;
  head: Head;
}
export type SlotName = keyof Slots;

export interface SlotKind<N extends SlotName, C> {
  readonly slot: N;
  readonly kind: string;
  /** One line for listings. */
  readonly summary: string;
  /** Options besides `kind`, with defaults. */
  readonly options: z.ZodType<C>;
  /**
   * For attention: honours `causal: false` of its SlotContext, and `visible` and `keep` of the forward context. Kinds
   * that are causal by construction leave it out, and are refused where more is asked for.
   */
  readonly generalMasks?: boolean;
  /** For positions: scores mean something for keys up to the query only; refused where queries see ahead. */
  readonly pastOnly?: boolean;
  /** For attention: decodes by rows (src/nn/rows.ts). Models with a kind that does not are computed anew for every token. */
  readonly rows?: boolean;
  /** @throws AnsatzError when the options do not fit the model's sizes. */
  build(config: C, context: SlotContext): Slots[N];
  /** The same options with whatever they take from the longest row written out; absent: they take nothing. */
  settled?(config: C, context: number): C;
}

const registry = new Map<string, SlotKind<SlotName, unknown>>();

export function registerSlot<N extends SlotName, C>(kind: SlotKind<N, C>): void {
  registry.set(`${kind.slot}:${kind.kind}`, kind as unknown as SlotKind<SlotName, unknown>);
}

export const kindsOf = (slot: SlotName): SlotKind<SlotName, unknown>[] =>
  [...registry.values()].filter((k) => k.slot === slot);

export type SlotConfig = KindConfig;

/** Schema of a slot: `kind` picks the options' schema. A bare string is a kind with its defaults. */
export const slotSchema = (slot: SlotName): z.ZodType<SlotConfig> =>
  kindSchema({
    what: slot,
    find: (kind) => registry.get(`${slot}:${kind}`),
    names: () => kindsOf(slot).map((k) => k.kind),
  });

/** Builds what stands in a slot. */
export function buildSlot<N extends SlotName>(slot: N, config: SlotConfig, context: SlotContext): Slots[N] {
  const known = registry.get(`${slot}:${config.kind}`);
  if (!known) throw new AnsatzError(`unknown ${slot} '${config.kind}'`);
  if (slot === 'attention' && context.causal === false && !known.generalMasks)
    throw new AnsatzError(
      `attention '${config.kind}' is causal by construction: it cannot look both ways in an encoder`,
      {
        hint: "use attention 'full' there (layout.encoderAttention)",
      },
    );
  return known.build(config, context) as Slots[N];
}

/** A slot's config that stays the same function of its weights in models for longer rows. */
export function settledSlot<S extends SlotConfig>(slot: SlotName, config: S, context: number): S {
  const settled = registry.get(`${slot}:${config.kind}`)?.settled?.(config, context) as object | undefined;
  return settled ? { ...config, ...settled } : config;
}

/** Whether an attention kind decodes by rows. */
export const decodesRows = (config: SlotConfig): boolean => registry.get(`attention:${config.kind}`)?.rows === true;

/** Whether a kind of positions has no scores for keys ahead of a query. */
export const isPastOnly = (config: SlotConfig): boolean => registry.get(`positions:${config.kind}`)?.pastOnly === true;

/** Whether an attention kind can follow masks other than the causal one. */
export const hasGeneralMasks = (config: SlotConfig): boolean =>
  registry.get(`attention:${config.kind}`)?.generalMasks === true;
