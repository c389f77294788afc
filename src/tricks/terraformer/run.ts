/**
 * A stack of reversible blocks, with "forgetting" between groups of them: the streams' mean goes through a dense layer and
 * starts both streams anew (trax terraformer.py). What came before a forgetting layer cannot be rebuilt from what comes
 * after it: each one keeps two more streams.
 */
import { childOf, type ForwardContext, type Module, type ParamTree, tensorOf } from '../../nn/index.ts';
import { linear, matrix } from '../../nn/linear.ts';
import { addScaled } from '../../tensor/index.ts';
import { type Block, halvesOf, runStack, type StackOptions, type Streams } from '../reversible/index.ts';

export interface Run {
  /** Parts under the names `blocks` and, if there are any, `forget`. */
  readonly children: Readonly<Record<string, Module>>;
  /** p holds those names. */
  forward(p: ParamTree, streams: Streams, c: ForwardContext): Streams;
}

/** Blocks from each start to the next: n at a time, the rest together when it is one more at most. */
export function groupsOf(blocks: number, n: number): number[] {
  const starts = [0];
  if (n > 0) for (let at = 0; blocks - at > n + 1; ) starts.push((at += n));
  return starts;
}

export function buildRun(blocks: readonly Block[], width: number, forgetEvery: number, o: StackOptions): Run {
  const starts = groupsOf(blocks.length, forgetEvery);
  const forget = Object.fromEntries(starts.slice(1).map((_, k) => [String(k), matrix(width, width)]));
  return {
    children: {
      blocks: { children: Object.fromEntries(blocks.map((b, k) => [String(k), b])) },
      ...(starts.length > 1 ? { forget: { params: forget } } : {}),
    },
    forward: (p, streams, c) => {
      let both = streams;
      starts.forEach((start, k) => {
        if (k > 0) {
          const w = tensorOf(childOf(p, 'forget'), String(k - 1));
          const x = linear(addScaled(both[0], both[1], 0.5, 0.5), w, c, { out: 'f32' });
          both = [x, x];
        }
        both = runStack(halvesOf(blocks.slice(start, starts[k + 1]), childOf(p, 'blocks'), start), both, o, c);
      });
      return both;
    },
  };
}
