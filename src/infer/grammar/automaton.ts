/**
 * Recognises a grammar byte by byte. A configuration is a stack: the node that comes next, and what comes after it.
 * Equal stacks are the same object, sets of them are states, and what a byte makes of a state is remembered: the grammar
 * becomes a deterministic automaton where it is used, and nowhere else.
 */
import type { Node } from './nodes.ts';

interface Stack {
  readonly id: number;
  readonly node: Node;
  readonly left: { readonly min: number; readonly max: number } | null;
  readonly rest: Stack | null;
}

/** A byte that may come, and the stack after it (null: the end). */
interface Step {
  readonly set: Uint32Array;
  readonly rest: Stack | null;
}

interface State {
  readonly id: number;
  readonly steps: readonly Step[];
  readonly accepts: boolean;
  readonly next: Int32Array;
}

/** No text leads there: nothing can be repaired. */
export const DEAD = -1;
const UNKNOWN = -2;

export class Automaton {
  private readonly nodes = new Map<Node, number>();
  private readonly stacks = new Map<string, Stack>();
  private readonly states: State[] = [];
  private readonly byKey = new Map<string, number>();
  /** The state before the first byte. */
  readonly start: number;

  constructor(grammar: Node) {
    this.start = this.state([this.push(grammar, null, null)]);
  }

  get size(): number {
    return this.states.length;
  }

  /** The state after a byte; DEAD when no text of the grammar goes on so. */
  step(state: number, byte: number): number {
    const s = this.states[state];
    const known = s.next[byte];
    if (known !== UNKNOWN) return known;
    const rests: (Stack | null)[] = [];
    for (const { set, rest } of s.steps) if ((set[byte >> 5] >>> (byte & 31)) & 1) rests.push(rest);
    const next = rests.length === 0 ? DEAD : this.state(rests);
    s.next[byte] = next;
    return next;
  }

  /** Whether the text so far is complete. */
  accepts(state: number): boolean {
    return this.states[state].accepts;
  }

  private push(node: Node, left: Stack['left'], rest: Stack | null): Stack {
    let id = this.nodes.get(node);
    if (id === undefined) this.nodes.set(node, (id = this.nodes.size));
    const key = `${id}:${left ? `${left.min},${left.max}` : ''}:${rest?.id ?? ''}`;
    let made = this.stacks.get(key);
    if (!made) this.stacks.set(key, (made = { id: this.stacks.size, node, left, rest }));
    return made;
  }

  private state(stacks: readonly (Stack | null)[]): number {
    const steps = new Map<string, Step>();
    let accepts = false;
    const seen = new Set<Stack>();
    const open = [...stacks];
    for (let top = open.pop(); top !== undefined; top = open.pop()) {
      if (top === null) {
        accepts = true;
        continue;
      }
      if (seen.has(top)) continue;
      seen.add(top);
      const { node, rest } = top;
      switch (node.kind) {
        case 'byte':
          steps.set(`${this.nodes.get(node)}:${rest?.id ?? ''}`, { set: node.set, rest });
          break;
        case 'seq':
          open.push(node.items.reduceRight<Stack | null>((after, item) => this.push(item, null, after), rest));
          break;
        case 'alt':
          for (const item of node.items) open.push(this.push(item, null, rest));
          break;
        case 'ref':
          open.push(this.push(node.target!, null, rest));
          break;
        case 'repeat': {
          const { min, max } = top.left ?? node;
          if (min === 0) open.push(rest);
          if (max > 0) {
            const left = { min: Math.max(0, min - 1), max: max - 1 };
            open.push(this.push(node.item, null, this.push(node, left, rest)));
          }
          break;
        }
      }
    }
    const key = `${[...steps.keys()].sort().join('|')}${accepts ? '!' : ''}`;
    const known = this.byKey.get(key);
    if (known !== undefined) return known;
    const id = this.states.length;
    this.states.push({ id, steps: [...steps.values()], accepts, next: new Int32Array(256).fill(UNKNOWN) });
    this.byKey.set(key, id);
    return id;
  }
}
