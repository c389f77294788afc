/**
 * What /ansatz/models and /ansatz/inspect answer (docs/playground.md): one definition for the server and for the page, which
 * imports it too. Types alone, of what JSON holds.
 */
import type { LayerSeen } from '../infer/inside/seen.ts';

export interface ModelCard {
  readonly id: string;
  readonly object: 'model_card';
  readonly parameters: number;
  readonly layout: string;
  readonly depth: number;
  readonly width: number;
  readonly context: number;
  readonly vocab: number;
  /** What stands in each slot, in the order of the blocks, each once. */
  readonly kinds: Readonly<Record<'attention' | 'ffn' | 'positions' | 'norm', readonly string[]>>;
  readonly objective: string;
  readonly precision: string;
  /** Bytes of the parameters in memory. */
  readonly weightBytes: number;
  /** The open model whose weights it shares (an adapter); the bytes are those of its own. */
  readonly base: string | null;
  /** Steps trained, and bits per byte on held-out text at the last evaluation. */
  readonly step: number | null;
  readonly bitsPerByte: number | null;
  /** Whether it fills in text before a suffix. */
  readonly infill: boolean;
  readonly encoder: boolean;
  /** Why it computes everything anew for each token; null: it does not. */
  readonly recomputes: string | null;
}

export interface WireCandidate {
  readonly id: number;
  readonly text: string;
  /** UTF-8. */
  readonly bytes: readonly number[];
  /** Null: nothing comes before it. */
  readonly logprob: number | null;
}

export interface WireToken extends WireCandidate {
  /** The likeliest tokens at this place; none for those that an encoder reads. */
  readonly top?: readonly WireCandidate[];
  /** Part of what the model was given, not of what it wrote. */
  readonly given: boolean;
}

/** Cells as base64 of bytes: a fifth of what numbers would take. */
export interface WireLayer extends Omit<LayerSeen, 'cells' | 'strength' | 'active'> {
  readonly cells: string;
  readonly strength?: string;
  readonly active: readonly number[];
}

export interface WireInspection {
  readonly object: 'inspection';
  readonly model: string;
  readonly tokens: readonly WireToken[];
  /** What would follow. */
  readonly next: readonly WireCandidate[];
  /** Tokens at the start that were left out. */
  readonly cut: number;
  readonly layers: readonly WireLayer[];
  readonly encoder: { readonly tokens: readonly WireToken[]; readonly layers: readonly WireLayer[] } | null;
  readonly bytes: { readonly weights: number; readonly token: readonly number[]; readonly cache: readonly number[] };
}
