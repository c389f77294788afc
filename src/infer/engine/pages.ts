/**
 * Who has which pages of the cache, and which pages hold beginnings that other sequences may share.
 *
 * Full pages form a tree: a page's place is the text before it. A sequence that begins like an earlier one takes its
 * pages as they are (Zheng et al. 2024, SGLang: radix attention, here by whole pages). Pages that nobody uses stay
 * until their room is needed; the one that was used longest ago goes first, leaves before their parents.
 */

interface Node {
  readonly parent: Node | null;
  readonly key: string;
  readonly page: number;
  readonly children: Map<string, Node>;
  /** Sequences that use it. */
  users: number;
}

/** The pages of one sequence. */
export interface PageList {
  readonly pages: number[];
  /** Tree nodes of its first pages: shared, never written again. */
  readonly nodes: Node[];
  readonly root: Node;
}

export interface PageStats {
  readonly total: number;
  readonly free: number;
  /** Pages that sequences use, and pages kept in case a sequence begins like theirs. */
  readonly used: number;
  readonly cached: number;
  readonly hitTokens: number;
  readonly askedTokens: number;
}

export class Pages {
  readonly page: number;
  private readonly free: number[];
  private readonly total: number;
  private readonly roots = new Map<string, Node>();
  /** Nodes that nobody uses, in the order of their last use (a Map keeps insertion order). */
  private readonly idle = new Set<Node>();
  private hitTokens = 0;
  private askedTokens = 0;

  constructor(count: number, page: number) {
    this.page = page;
    this.total = count;
    this.free = Array.from({ length: count }, (_, k) => count - 1 - k);
  }

  /** Pages that could be had now. */
  get available(): number {
    return this.free.length + this.idle.size;
  }

  /**
   * Pages for a sequence that begins with `tokens`: those of the longest cached beginning, whose length in tokens comes
   * with it. At least one token is left to compute. `salt`: what else the state depends on (an encoder's text).
   */
  begin(tokens: readonly number[], salt = ''): { list: PageList; cached: number } {
    let root = this.roots.get(salt);
    if (!root) this.roots.set(salt, (root = node(null, salt, -1)));
    const list: PageList = { pages: [], nodes: [], root };
    let at = root;
    for (let start = 0; start + this.page < tokens.length; start += this.page) {
      const next = at.children.get(keyOf(tokens, start, this.page));
      if (!next) break;
      this.take(next);
      list.nodes.push(next);
      list.pages.push(next.page);
      at = next;
    }
    const cached = list.nodes.length * this.page;
    this.hitTokens += cached;
    this.askedTokens += tokens.length;
    return { list, cached };
  }

  /** Makes room for `tokens` tokens in all; false, and nothing changes, when there is none. */
  grow(list: PageList, tokens: number): boolean {
    const wanted = Math.ceil(tokens / this.page) - list.pages.length;
    if (wanted > this.available) return false;
    for (let k = 0; k < wanted; k++) list.pages.push(this.allocate());
    return true;
  }

  /** Notes that the first `count` of `tokens` have been computed: full pages can be shared from now on. */
  publish(list: PageList, tokens: readonly number[], count: number): void {
    while ((list.nodes.length + 1) * this.page <= count) {
      const k = list.nodes.length;
      const parent = list.nodes[k - 1] ?? list.root;
      const key = keyOf(tokens, k * this.page, this.page);
      const known = parent.children.get(key);
      if (known) {
        // Somebody computed the same text at the same time: use theirs from here on, and give this page back.
        this.take(known);
        this.free.push(list.pages[k]);
        list.pages[k] = known.page;
        list.nodes.push(known);
        continue;
      }
      const made = node(parent, key, list.pages[k]);
      made.users = 1;
      parent.children.set(key, made);
      list.nodes.push(made);
    }
  }

  /** The sequence has ended. */
  release(list: PageList): void {
    for (let k = list.nodes.length - 1; k >= 0; k--) this.leave(list.nodes[k]);
    for (const page of list.pages.slice(list.nodes.length)) this.free.push(page);
    list.pages.length = 0;
    list.nodes.length = 0;
  }

  stats(): PageStats {
    const cached = this.idle.size;
    const free = this.free.length;
    const { total, hitTokens, askedTokens } = this;
    return { total, free, cached, used: total - free - cached, hitTokens, askedTokens };
  }

  private take(n: Node): void {
    if (n.users++ === 0) this.idle.delete(n);
  }

  private leave(n: Node): void {
    if (--n.users === 0) this.idle.add(n);
  }

  private allocate(): number {
    const page = this.free.pop();
    if (page !== undefined) return page;
    // Parents are used by whoever uses their children, and left after them: an idle node's children are idle, and were
    // left before it. So the first idle node without children is the one that was left longest ago.
    for (const n of this.idle) {
      if (n.children.size > 0) continue;
      this.idle.delete(n);
      n.parent!.children.delete(n.key);
      return n.page;
    }
    throw new Error('no page is free: grow() checks that there is one');
  }
}

const node = (parent: Node | null, key: string, page: number): Node => ({
  parent,
  key,
  page,
  children: new Map(),
  users: 0,
});

const keyOf = (tokens: readonly number[], start: number, count: number): string =>
  tokens.slice(start, start + count).join();
