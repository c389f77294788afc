/**
 * Texts that an encoder has read: each is read once and shared by every request that looks at it, and kept after its
 * last one until its pages are needed.
 */
import { AnsatzError } from '../../backend/errors.ts';
import type { Passes } from './passes.ts';

export interface Memory {
  readonly key: string;
  readonly tokens: readonly number[];
  /** Whose parameters read it. */
  readonly variant: number;
  readonly pages: readonly number[];
  users: number;
  /** The reading, under way or done; null before it. */
  read: Promise<void> | null;
}

export class Memories {
  private readonly passes: Passes;
  private readonly page: number;
  private readonly total: number;
  private readonly free: number[];
  /** By text; the one that was used longest ago first. */
  private readonly known = new Map<string, Memory>();

  constructor(passes: Passes, pages: number, page: number) {
    [this.passes, this.page, this.total] = [passes, page, pages];
    this.free = Array.from({ length: pages }, (_, k) => pages - 1 - k);
  }

  /**
   * Pages of a text, read or about to be; null while there is no room. Await `read` before using them.
   * @throws AnsatzError when there can never be room.
   */
  take(tokens: readonly number[], variant = 0): Memory | null {
    const key = `${variant === 0 ? '' : `${variant}:`}${tokens.join()}`;
    const found = this.known.get(key);
    if (found) {
      this.known.delete(key);
      this.known.set(key, found);
      found.users++;
      return found;
    }
    const wanted = Math.ceil(tokens.length / this.page);
    if (wanted > this.total)
      throw new AnsatzError(`a text of ${tokens.length} tokens does not fit the encoder's cache`);
    for (const old of this.known.values()) {
      if (this.free.length >= wanted) break;
      if (old.users > 0) continue;
      this.known.delete(old.key);
      this.free.push(...old.pages);
    }
    if (this.free.length < wanted) return null;
    const made: Memory = {
      key,
      tokens,
      variant,
      pages: this.free.splice(this.free.length - wanted),
      users: 1,
      read: null,
    };
    this.known.set(key, made);
    return made;
  }

  /** Reads it unless that is done. */
  async fill(memory: Memory): Promise<void> {
    memory.read ??= this.passes.read(memory.tokens, memory.pages, memory.variant);
    try {
      await memory.read;
    } catch (error) {
      this.known.delete(memory.key);
      throw error;
    }
  }

  leave(memory: Memory): void {
    memory.users--;
  }
}
