/** Requests to the server that this page came from, and to no other. */
import { ApiError, errorOf, noAnswer, wasStopped } from './errors.ts';
import { events } from './sse.ts';
import type { Candidate, Token } from './tokens.ts';

/** What decides how tokens are drawn, in the API's words. */
export interface Sampling {
  readonly temperature: number;
  readonly top_p: number;
  readonly min_p: number;
  readonly seed?: number;
  readonly stop?: readonly string[];
}

export interface Message {
  readonly role: 'system' | 'user' | 'assistant';
  readonly content: string;
}

export interface Usage {
  readonly prompt: number;
  readonly completion: number;
  readonly cached: number;
}

/** What comes in the course of a completion. */
export type Piece =
  | { readonly kind: 'tokens'; readonly tokens: readonly Token[] }
  | { readonly kind: 'end'; readonly reason: string }
  | { readonly kind: 'usage'; readonly usage: Usage };

const KEY = 'ansatz-key';
export const storedKey = (): string => sessionStorage.getItem(KEY) ?? '';
/** Kept until the tab is closed, and sent in a header only. */
export const storeKey = (key: string): void =>
  key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY);

export async function request(path: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  const key = storedKey();
  let response: Response;
  try {
    response = await fetch(path, {
      method: body === undefined ? 'GET' : 'POST',
      headers: {
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...(key ? { authorization: `Bearer ${key}` } : {}),
      },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    throw wasStopped(error) ? error : noAnswer();
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

interface WireCandidate {
  readonly token: string;
  readonly bytes?: number[] | null;
  readonly logprob: number;
}
interface WireChunk {
  readonly error?: { readonly message?: string };
  readonly choices?: readonly {
    readonly text?: string;
    readonly delta?: { readonly content?: string | null };
    readonly finish_reason?: string | null;
    readonly logprobs?: {
      /** Chat. */
      readonly content?: readonly (WireCandidate & { readonly top_logprobs: readonly WireCandidate[] })[] | null;
      /** Plain completions. */
      readonly tokens?: readonly string[];
      readonly token_logprobs?: readonly (number | null)[];
      readonly top_logprobs?: readonly (Readonly<Record<string, number>> | null)[];
    } | null;
  }[];
  readonly usage?: {
    readonly prompt_tokens: number;
    readonly completion_tokens: number;
    readonly prompt_tokens_details?: { readonly cached_tokens?: number };
  } | null;
}

const candidate = ({ token, bytes, logprob }: WireCandidate): Candidate => ({
  text: token,
  bytes: bytes ?? null,
  logprob,
});
const likeliestFirst = (list: Candidate[]): Candidate[] => list.sort((a, b) => b.logprob - a.logprob);

/** Plain completions name a token that is no whole text "bytes:\xe2\x82". */
function named(token: string, logprob: number): Candidate {
  const hex = /^bytes:((?:\\x[0-9a-f]{2})+)$/i.exec(token)?.[1];
  const bytes = hex
    ? hex
        .slice(2)
        .split('\\x')
        .map((h) => Number.parseInt(h, 16))
    : null;
  return { text: token, bytes, logprob };
}

function tokensOf(choice: NonNullable<WireChunk['choices']>[number]): Token[] {
  const { logprobs: l, delta, text } = choice;
  if (l?.content)
    return l.content.map((t) => ({ ...candidate(t), top: likeliestFirst(t.top_logprobs.map(candidate)) }));
  if (l?.tokens)
    return l.tokens.map((token, k) => ({
      ...named(token, l.token_logprobs?.[k] ?? 0),
      top: likeliestFirst(Object.entries(l.top_logprobs?.[k] ?? {}).map(([t, p]) => named(t, p))),
    }));
  const plain = text ?? delta?.content ?? '';
  return plain ? [{ text: plain, bytes: null, logprob: 0, top: [] }] : [];
}

async function* stream(path: string, body: object, signal: AbortSignal): AsyncGenerator<Piece> {
  const response = await request(path, { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  for await (const data of events(response.body!)) {
    if (data === '[DONE]') return;
    const chunk = JSON.parse(data) as WireChunk;
    if (chunk.error) throw new ApiError(500, chunk.error.message ?? 'The server gave up.', 'Try again.');
    const choice = chunk.choices?.[0];
    const tokens = choice ? tokensOf(choice) : [];
    if (tokens.length > 0) yield { kind: 'tokens', tokens };
    if (choice?.finish_reason) yield { kind: 'end', reason: choice.finish_reason };
    if (chunk.usage) {
      const { prompt_tokens, completion_tokens, prompt_tokens_details } = chunk.usage;
      const usage = {
        prompt: prompt_tokens,
        completion: completion_tokens,
        cached: prompt_tokens_details?.cached_tokens ?? 0,
      };
      yield { kind: 'usage', usage };
    }
  }
}

export const chat = (
  o: { model: string; messages: readonly Message[]; max_tokens: number } & Sampling,
  signal: AbortSignal,
): AsyncGenerator<Piece> => stream('/v1/chat/completions', { ...o, logprobs: true, top_logprobs: 8 }, signal);

export const complete = (
  o: { model: string; prompt: string; suffix?: string; max_tokens: number } & Sampling,
  signal: AbortSignal,
): AsyncGenerator<Piece> => stream('/v1/completions', { ...o, logprobs: 5 }, signal);
