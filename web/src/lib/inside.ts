/** What /ansatz/models and /ansatz/inspect answer (docs/playground.md). */
import { type Message, request } from './api.ts';
import type { Candidate } from './tokens.ts';

export interface ModelCard {
  readonly id: string;
  readonly parameters: number;
  readonly layout: string;
  readonly depth: number;
  readonly width: number;
  readonly context: number;
  readonly vocab: number;
  /** Kinds of attention, ffn, positions and norm, in the order of the blocks. */
  readonly kinds: Readonly<Record<string, readonly string[]>>;
  readonly objective: string;
  readonly precision: string;
  readonly weightBytes: number;
  readonly step: number | null;
  readonly bitsPerByte: number | null;
  readonly infill: boolean;
  readonly encoder: boolean;
  /** Null: decoded by rows; else why everything is computed anew for each token. */
  readonly recomputes: string | null;
}

interface WireCandidate {
  readonly text: string;
  readonly bytes: readonly number[];
  readonly logprob: number | null;
}

export interface SeenToken extends Candidate {
  readonly top: readonly Candidate[];
  /** Part of what was given, not of what the model wrote. */
  readonly given: boolean;
  /** Has no probability: nothing came before it. */
  readonly first: boolean;
}

export interface Layer {
  readonly layer: string;
  readonly kind: 'experts' | 'units';
  readonly count: number;
  readonly columns: number;
  readonly block: number;
  /** [tokens, columns], 0 to 255. */
  readonly cells: Uint8Array;
  readonly strength: Uint8Array | null;
  readonly active: readonly number[];
}

export interface Inside {
  readonly tokens: readonly SeenToken[];
  readonly cut: number;
  readonly layers: readonly Layer[];
  readonly encoder: { readonly tokens: readonly SeenToken[]; readonly layers: readonly Layer[] } | null;
  readonly bytes: { readonly weights: number; readonly token: readonly number[]; readonly cache: readonly number[] };
}

/** What a model has read and written: as it was asked, and what it answered. */
export type Text = { readonly completion: string } & (
  | { readonly prompt: string; readonly suffix?: string }
  | { readonly messages: readonly Message[] }
);

type WireLayer = Omit<Layer, 'cells' | 'strength'> & { readonly cells: string; readonly strength?: string };
type WireToken = WireCandidate & { readonly top?: readonly WireCandidate[]; readonly given?: boolean };

const unpack = (base64: string): Uint8Array => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const layer = ({ cells, strength, ...rest }: WireLayer): Layer => ({
  ...rest,
  cells: unpack(cells),
  strength: strength ? unpack(strength) : null,
});
const candidate = (c: WireCandidate): Candidate => ({ text: c.text, bytes: c.bytes, logprob: c.logprob ?? 0 });
const token = (t: WireToken): SeenToken => ({
  ...candidate(t),
  top: (t.top ?? []).map(candidate),
  given: t.given ?? false,
  first: t.logprob === null,
});

export async function models(): Promise<ModelCard[]> {
  const response = await request('/ansatz/models');
  return ((await response.json()) as { data: ModelCard[] }).data;
}

export async function inspect(model: string, text: Text, signal?: AbortSignal): Promise<Inside> {
  const response = await request('/ansatz/inspect', { model, ...text }, signal);
  const body = (await response.json()) as {
    tokens: WireToken[];
    cut: number;
    layers: WireLayer[];
    encoder: { tokens: WireToken[]; layers: WireLayer[] } | null;
    bytes: Inside['bytes'];
  };
  const { encoder } = body;
  return {
    ...body,
    tokens: body.tokens.map(token),
    layers: body.layers.map(layer),
    encoder: encoder && { tokens: encoder.tokens.map(token), layers: encoder.layers.map(layer) },
  };
}
