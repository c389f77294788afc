/** Who may ask: keys, scopes, rates; and which web pages. */
import type { MiddlewareHandler } from 'hono';
import { allows, type Keys, type Scope } from '../auth/keys.ts';
import { admitRequest, type Limits, rateHeaders } from '../auth/limits.ts';
import { ApiError } from './errors.ts';
import type { Env } from './exchange.ts';

const LOOPBACK = /^(localhost|127(\.\d{1,3}){3}|\[::1\]|::1)$/i;
export const isLoopback = (host: string): boolean => LOOPBACK.test(host);

const hostOf = (value: string): string => {
  try {
    return new URL(value.includes('://') ? value : `http://${value}`).hostname;
  } catch {
    return '';
  }
};

/**
 * A browser sends what any page asks it to. Pages of other origins are refused unless they are named; and without keys,
 * so are requests for a name that only stands for this machine in somebody's DNS.
 */
export function originGuard(cors: readonly string[], local: boolean): MiddlewareHandler<Env> {
  return async (c, next) => {
    const host = c.req.header('host') ?? '';
    if (local && host !== '' && !isLoopback(hostOf(host)))
      throw new ApiError(403, `Requests for the host '${host}' are not served here.`, { code: 'host_not_allowed' });
    const origin = c.req.header('origin');
    const own = origin !== undefined && /^https?:\/\//.test(origin) && origin.replace(/^https?:\/\//, '') === host;
    if (origin !== undefined && !own && !cors.includes('*') && !cors.includes(origin))
      throw new ApiError(403, `Pages of ${origin} may not use this server.`, { code: 'origin_not_allowed' });
    await next();
  };
}

/** Finds the caller's key and takes a request out of its rate. Without keys everybody may do everything. */
export function keyGuard(keys: Keys, limits: Limits): MiddlewareHandler<Env> {
  return async (c, next) => {
    if (keys.size > 0) {
      const given = /^Bearer\s+(\S+)\s*$/i.exec(c.req.header('authorization') ?? '')?.[1];
      const key = given === undefined ? null : keys.find(given);
      if (!key)
        throw new ApiError(
          401,
          given === undefined ? 'You did not provide an API key.' : 'Incorrect API key provided.',
          {
            code: 'invalid_api_key',
            type: 'invalid_request_error',
          },
        );
      c.set('key', key);
    }
    const rates = limits.of(c.get('key'));
    c.set('rates', rates);
    try {
      admitRequest(rates);
    } finally {
      // Those that are turned away are told too.
      for (const [name, value] of Object.entries(rateHeaders(rates))) c.header(name, value);
    }
    await next();
  };
}

export function scopeGuard(scope: Scope): MiddlewareHandler<Env> {
  return async (c, next) => {
    const key = c.get('key');
    if (key && !allows(key, scope))
      throw new ApiError(403, `Your API key has no permission for this (scope '${scope}').`, {
        code: 'insufficient_permissions',
      });
    await next();
  };
}
