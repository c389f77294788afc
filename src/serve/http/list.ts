/** Pages of a list: `limit` of those that come after the one named by `after`. */
import { z } from 'zod';
import { badRequest } from './errors.ts';
import type { Ctx } from './exchange.ts';

export interface ListPage<T> {
  object: 'list';
  data: T[];
  first_id: string | null;
  last_id: string | null;
  has_more: boolean;
}

export function listPage<T extends { readonly id: string }>(
  c: Ctx,
  all: readonly T[],
  usual = 20,
  most = 100,
): ListPage<T> {
  const { after, limit: text, order } = c.req.query();
  const limit = z.coerce
    .number()
    .int()
    .min(1)
    .max(most)
    .safeParse(text ?? usual);
  if (!limit.success) throw badRequest(`'limit' must be between 1 and ${most}`, 'limit');
  if (order !== undefined && order !== 'asc' && order !== 'desc')
    throw badRequest("'order' must be asc or desc", 'order');
  const list = order === 'asc' ? [...all].reverse() : all;
  const at = after === undefined ? -1 : list.findIndex((x) => x.id === after);
  if (after !== undefined && at < 0) throw badRequest(`'after': there is no '${after}' in this list`, 'after');
  const data = list.slice(at + 1, at + 1 + limit.data);
  return {
    object: 'list',
    data,
    first_id: data[0]?.id ?? null,
    last_id: data.at(-1)?.id ?? null,
    has_more: at + 1 + data.length < list.length,
  };
}
