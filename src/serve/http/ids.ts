/** Names of things that the API hands out. */
import { randomBytes } from 'node:crypto';

const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789';

/** `prefix` and 24 random letters and digits. */
export function newId(prefix: string, length = 24): string {
  let id = prefix;
  // 248 = 4 * 62: larger bytes would make some letters likelier.
  while (id.length < prefix.length + length)
    for (const b of randomBytes(length)) if (b < 248 && id.length < prefix.length + length) id += LETTERS[b % 62];
  return id;
}

export const seconds = (ms = Date.now()): number => Math.floor(ms / 1000);
