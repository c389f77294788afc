/** Blocks of half steps: each a norm and a part, under names of their own. */
import { childOf, type Mixer, type Module, type Norm, type ParamTree } from '../../nn/index.ts';
import type { Half } from './stack.ts';

export interface NamedHalf {
  readonly normName: string;
  readonly norm: Norm;
  readonly partName: string;
  readonly part: Mixer;
}

export interface Block extends Module {
  readonly halves: readonly NamedHalf[];
}

export const block = (halves: readonly NamedHalf[]): Block => ({
  halves,
  children: Object.fromEntries(
    halves.flatMap((h): [string, Module][] => [
      [h.normName, h.norm],
      [h.partName, h.part],
    ]),
  ),
});

/** The half steps of blocks in order, with their parameters: those of block k lie under its number. */
export const halvesOf = (blocks: readonly Block[], trees: ParamTree, first = 0): Half[] =>
  blocks.flatMap(({ halves }, k) => {
    const tree = childOf(trees, String(first + k));
    return halves.map((h, j) => ({
      norm: h.norm,
      part: h.part,
      normParams: childOf(tree, h.normName),
      partParams: childOf(tree, h.partName),
      ...(j === halves.length - 1 ? { tap: `blocks.${first + k}.residual` } : {}),
    }));
  });
