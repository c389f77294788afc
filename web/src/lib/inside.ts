/** What the server says of models and of what goes on inside them (docs/playground.md), as the page wants it. */
import type { LayerSeen } from '../../../src/infer/inside/seen.ts';
import type { ModelCard, WireCandidate, WireInspection, WireLayer, WireToken } from '../../../src/serve/wire.ts';
import { type Message, request } from './api.ts';
import type { Candidate } from './tokens.ts';

export type { ModelCard };

export interface SeenToken extends Candidate {
  readonly top: readonly Candidate[];
  /** Part of what was given, not of what the model wrote. */
  readonly given: boolean;
  /** Has no probability: nothing came before it. */
  readonly first: boolean;
}

export interface Layer extends Omit<LayerSeen, 'strength' | 'active'> {
  readonly strength: Uint8Array | null;
  readonly active: readonly number[];
}

export interface Inside extends Pick<WireInspection, 'cut' | 'bytes'> {
  readonly tokens: readonly SeenToken[];
  readonly layers: readonly Layer[];
  readonly encoder: { readonly tokens: readonly SeenToken[]; readonly layers: readonly Layer[] } | null;
}

/** What a model has read and written: as it was asked, and what it answered. */
export type Text = { readonly completion: string } & (
  | { readonly prompt: string; readonly suffix?: string }
  | { readonly messages: readonly Message[] }
);

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
  given: t.given,
  first: t.logprob === null,
});

export async function models(): Promise<ModelCard[]> {
  const response = await request('/ansatz/models');
  return ((await response.json()) as { data: ModelCard[] }).data;
}

export async function inspect(model: string, text: Text, signal?: AbortSignal): Promise<Inside> {
  const response = await request('/ansatz/inspect', { model, ...text }, signal);
  const body = (await response.json()) as WireInspection;
  const { encoder } = body;
  return {
    ...body,
    tokens: body.tokens.map(token),
    layers: body.layers.map(layer),
    encoder: encoder && { tokens: encoder.tokens.map(token), layers: encoder.layers.map(layer) },
  };
}
