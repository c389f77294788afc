/** What every handler knows of its request, and what it needs of the server. */
import type { HttpBindings } from '@hono/node-server';
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response';
import type { Context } from 'hono';
import { allowsModel, type KeyRecord } from '../auth/keys.ts';
import { admitTokens, type Rates, rateHeaders } from '../auth/limits.ts';
import type { Lease, Registry } from '../models/registry.ts';
import { ApiError, noModel } from './errors.ts';
import type { Meter } from './meter.ts';

export interface Variables {
  id: string;
  key: KeyRecord | null;
  rates: Rates;
  meter: Meter;
  /** Aborts when the client has gone, or the server closes. */
  gone: AbortSignal;
  /** Hears of errors that nobody thought of. */
  unforeseen: (error: unknown) => void;
}

export interface Env {
  Bindings: HttpBindings;
  Variables: Variables;
}
export type Ctx = Context<Env>;

export interface Limited {
  /** Bytes of a request. */
  readonly maxBody: number;
}

/** A model that the caller may use. */
export async function leaseModel(c: Ctx, registry: Registry, name: string): Promise<Lease> {
  const key = c.get('key');
  if (key && !allowsModel(key, name)) throw noModel(name);
  const lease = await registry.lease(name);
  c.get('meter').model = name;
  return lease;
}

/** Takes tokens out of the key's bucket, and says in the answer what is left; the result gives back what was not used. */
export function reserveTokens(c: Ctx, most: number): (used: number) => void {
  const rates = c.get('rates');
  const settle = admitTokens(rates, most);
  for (const [name, value] of Object.entries(rateHeaders(rates))) c.header(name, value);
  return settle;
}

/** What is answered to a request that was cut off: nothing when its client has gone, an error when the server closes. */
export function cutOff(c: Ctx): Response {
  if (!c.env.outgoing.destroyed) throw closingError();
  return alreadySent();
}

export const closingError = (): ApiError =>
  new ApiError(503, 'The server is closing.', { code: 'server_closing', headers: { 'retry-after': '5' } });

/** For an answer that has been written to the connection, or has nobody left to read it. */
export const alreadySent = (): Response => new Response(null, { headers: RESPONSE_ALREADY_SENT.headers });
