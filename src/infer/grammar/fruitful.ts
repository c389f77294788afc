/**
 * A grammar without its dead ends: what no text can come of (a schema of false, an empty enum, a list that must hold
 * itself) is taken out, so that a text that has begun can always be ended.
 */
import type { Node } from './nodes.ts';

const partsOf = (node: Node): readonly Node[] =>
  node.kind === 'seq' || node.kind === 'alt'
    ? node.items
    : node.kind === 'repeat'
      ? [node.item]
      : node.kind === 'ref'
        ? [node.target!]
        : [];

/** Every node once, those that it is made of before it where nothing is recursive. */
function allOf(grammar: Node): Node[] {
  const seen = new Set<Node>();
  const order: Node[] = [];
  const open: { node: Node; entered: boolean }[] = [{ node: grammar, entered: false }];
  for (let top = open.pop(); top !== undefined; top = open.pop()) {
    const { node, entered } = top;
    if (entered) order.push(node);
    else if (!seen.has(node)) {
      seen.add(node);
      open.push({ node, entered: true });
      for (const part of partsOf(node)) open.push({ node: part, entered: false });
    }
  }
  return order;
}

/** The nodes that some text comes of: the least set, found by going over all of them until none is added. */
function withTexts(nodes: readonly Node[]): Set<Node> {
  const good = new Set<Node>();
  const has = (node: Node): boolean => {
    switch (node.kind) {
      case 'byte':
        return node.set.some((word) => word !== 0);
      case 'seq':
        return node.items.every((item) => good.has(item));
      case 'alt':
        return node.items.some((item) => good.has(item));
      case 'repeat':
        return node.min === 0 || good.has(node.item);
      default:
        return good.has(node.target!);
    }
  };
  for (let before = -1; before !== good.size; ) {
    before = good.size;
    for (const node of nodes) if (!good.has(node) && has(node)) good.add(node);
  }
  return good;
}

/** The same texts from a grammar in which every choice leads to one; null when there is no text at all. */
export function fruitful(grammar: Node): Node | null {
  const nodes = allOf(grammar);
  const good = withTexts(nodes);
  if (!good.has(grammar)) return null;
  if (good.size === nodes.length) return grammar;
  // Nodes that are shared stay shared: to the automaton, equal nodes are the same one.
  const made = new Map<Node, Node>();
  const refs: { from: Node & { kind: 'ref' }; to: Node & { kind: 'ref' } }[] = [];
  for (const node of nodes)
    if (node.kind === 'ref' && good.has(node)) {
      const to: Node & { kind: 'ref' } = { ...node, target: null };
      made.set(node, to);
      refs.push({ from: node, to });
    }
  for (const node of nodes) {
    if (!good.has(node) || made.has(node)) continue;
    const kept = (items: readonly Node[]): Node[] => items.filter((i) => good.has(i)).map((i) => made.get(i)!);
    if (node.kind === 'byte') made.set(node, node);
    else if (node.kind === 'repeat')
      made.set(node, good.has(node.item) ? { ...node, item: made.get(node.item)! } : { kind: 'seq', items: [] });
    else if (node.kind !== 'ref') made.set(node, { kind: node.kind, items: kept(node.items) });
  }
  for (const { from, to } of refs) to.target = made.get(from.target!)!;
  return made.get(grammar)!;
}
