// Canonical JSON: the same value always gives the same bytes, so that its hash names it. Keys are sorted by code unit,
// undefined fields are left out as in JSON.stringify, numbers print as JavaScript prints them. What JSON would lose
// without a word (NaN, infinities, functions, bigints, class instances such as typed arrays) is refused.
import { createHash } from 'node:crypto';
import { AnsatzError } from '../../backend/errors.ts';

export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json | undefined };
export type JsonObject = { readonly [key: string]: Json | undefined };

/** `indent` 0 is the form that is hashed; other values are for people. */
export function canonicalJson(value: unknown, indent = 0): string {
  return JSON.stringify(sorted(value, '$'), undefined, indent);
}

export function hashOf(value: unknown): string {
  return createHash('sha256').update(canonicalJson(value)).digest('hex');
}

function sorted(value: unknown, path: string): unknown {
  if (value === null || typeof value === 'boolean' || typeof value === 'string') return value;
  if (typeof value === 'number') {
    if (Number.isFinite(value)) return value;
    throw new AnsatzError(`JSON cannot hold ${value} (at ${path})`);
  }
  if (Array.isArray(value)) return value.map((item, k) => sorted(item, `${path}[${k}]`));
  if (typeof value === 'object') {
    const prototype = Object.getPrototypeOf(value);
    if (prototype === Object.prototype || prototype === null) {
      // fromEntries defines own fields, so even a key named __proto__ survives.
      return Object.fromEntries(
        Object.keys(value)
          .filter((key) => (value as Record<string, unknown>)[key] !== undefined)
          .sort()
          .map((key) => [key, sorted((value as Record<string, unknown>)[key], `${path}.${key}`)]),
      );
    }
  }
  const kind = typeof value === 'object' ? (value as object).constructor?.name : typeof value;
  throw new AnsatzError(`JSON cannot hold a value of type ${kind} (at ${path})`);
}

/** Dotted paths at which two JSON values differ, at most `limit`; for messages that say what changed. */
export function differences(a: unknown, b: unknown, limit = 4, path = ''): string[] {
  const isObject = (v: unknown): v is Record<string, unknown> => typeof v === 'object' && v !== null;
  if (!isObject(a) || !isObject(b) || Array.isArray(a) !== Array.isArray(b)) {
    return Object.is(a, b) ? [] : [`${path || 'all of it'}: ${brief(a)} / ${brief(b)}`];
  }
  const found: string[] = [];
  for (const key of [...new Set([...Object.keys(a), ...Object.keys(b)])].sort()) {
    if (found.length >= limit) break;
    found.push(...differences(a[key], b[key], limit - found.length, path ? `${path}.${key}` : key));
  }
  return found;
}

function brief(value: unknown): string {
  const text = value === undefined ? 'absent' : JSON.stringify(value);
  return text.length > 40 ? `${text.slice(0, 37)}...` : text;
}
