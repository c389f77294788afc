/** Request bodies: JSON within bounds, checked against a schema. */
import type { Context } from 'hono';
import type { z } from 'zod';
import { ApiError, badRequest } from './errors.ts';

/** Objects and lists within one another; what clients send has a handful. */
const MAX_DEPTH = 96;
/** Bytes beyond the limit that are still taken in. */
const PATIENCE = 32 << 20;
/** JSON is parsed on the thread that serves everybody. */
export const MAX_JSON = 8 << 20;

export const tooLarge = (limit: number): ApiError =>
  new ApiError(413, `The request is larger than ${limit} bytes, which is the limit.`, { code: 'request_too_large' });

/** Bytes of a body, no more than `limit`. */
export async function readBody(request: Request, limit: number): Promise<Buffer> {
  const encoding = request.headers.get('content-encoding') ?? 'identity';
  if (encoding.toLowerCase() !== 'identity')
    throw new ApiError(415, `Bodies are taken as they are, not as '${encoding.slice(0, 40)}' (Content-Encoding).`, {
      code: 'unsupported_encoding',
    });
  const declared = Number(request.headers.get('content-length') ?? 0);
  if (declared > limit) throw tooLarge(limit);
  if (!request.body) return Buffer.alloc(0);
  const parts: Uint8Array[] = [];
  let size = 0;
  const reader = request.body.getReader();
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      throw badRequest('The connection was closed before the body was complete.');
    });
    if (done) break;
    size += value.length;
    // Clients that are still sending do not listen: a little more is read, and forgotten, before they are told.
    if (size > limit + PATIENCE) break;
    if (size <= limit) parts.push(value);
    else parts.length = 0;
  }
  if (size > limit) throw tooLarge(limit);
  return Buffer.concat(parts, size);
}

/** Depth of brackets outside of strings: what would overflow a stack is refused before anything walks it. */
function depthOf(text: string): number {
  let [depth, deepest] = [0, 0];
  for (let k = 0; k < text.length; k++) {
    const c = text.charCodeAt(k);
    if (c === 0x22) {
      for (k++; k < text.length && text.charCodeAt(k) !== 0x22; k++) if (text.charCodeAt(k) === 0x5c) k++;
    } else if (c === 0x7b || c === 0x5b) deepest = Math.max(deepest, ++depth);
    else if (c === 0x7d || c === 0x5d) depth--;
  }
  return deepest;
}

/** Whether a text of JSON is nested deeper than anything here goes through. */
export const tooDeep = (text: string): boolean => depthOf(text) > MAX_DEPTH;

export function parseJson(bytes: Uint8Array): unknown {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw badRequest('The body is not valid UTF-8.');
  }
  if (tooDeep(text)) throw badRequest(`The body is nested more than ${MAX_DEPTH} levels deep.`);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw badRequest(`The body is not valid JSON: ${(error as Error).message}`);
  }
}

const pathOf = (path: readonly PropertyKey[]): string =>
  path.reduce<string>((s, p) => (typeof p === 'number' ? `${s}[${p}]` : s ? `${s}.${String(p)}` : String(p)), '');

/** The innermost complaint: a union says what its likeliest member says. */
function innermost(issue: z.core.$ZodIssue): { path: PropertyKey[]; message: string } {
  if (issue.code !== 'invalid_union') return issue;
  const deepest = issue.errors
    .flat()
    .map(innermost)
    .sort((a, b) => b.path.length - a.path.length)[0];
  if (!deepest || deepest.path.length === 0)
    return { path: issue.path, message: issue.message === 'Invalid input' ? 'has the wrong type' : issue.message };
  return { path: [...issue.path, ...deepest.path], message: deepest.message };
}

/** @throws ApiError 400 that names the first field that is wrong. */
export function check<T>(schema: z.ZodType<T>, value: unknown): T {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw badRequest('The body must be a JSON object.');
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const { path, message } = innermost(parsed.error.issues[0]);
  const param = pathOf(path);
  throw badRequest(param ? `'${param}': ${message}` : message, param || undefined);
}

export async function jsonBody<T>(c: Context, schema: z.ZodType<T>, limit: number): Promise<T> {
  return check(schema, parseJson(await readBody(c.req.raw, Math.min(limit, MAX_JSON))));
}
