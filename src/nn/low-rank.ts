/**
 * Weights with differences of low rank beside them (Hu et al. 2021), for inference: x W^T + scale (x A^T) B^T, where W is
 * shared by whoever has another difference.
 */
import { AnsatzError } from '../backend/errors.ts';
import { AdaptedTensor, Tensor } from '../tensor/index.ts';
import type { ParamTree } from './module.ts';

export interface LowRank {
  /** [rank, in] and [out, rank]. */
  readonly a: Tensor;
  readonly b: Tensor;
  readonly scale: number;
}

/**
 * The same parameters, those that have a difference with it. All tensors stay the caller's: nothing is copied, and nothing of
 * the tree that is made may be disposed of.
 * @throws AnsatzError when one that has a difference is not there, or has one already.
 */
export function withLowRank(params: ParamTree, by: ReadonlyMap<string, LowRank>): ParamTree {
  const left = new Set(by.keys());
  const walk = (tree: ParamTree, prefix: string): ParamTree =>
    Object.fromEntries(
      Object.entries(tree).map(([name, value]): [string, Tensor | ParamTree] => {
        const path = prefix + name;
        if (!(value instanceof Tensor)) return [name, walk(value, `${path}.`)];
        const low = by.get(path);
        if (!low || value instanceof AdaptedTensor) return [name, value];
        left.delete(path);
        return [name, new AdaptedTensor(value, low.a, low.b, low.scale)];
      }),
    );
  const made = walk(params, '');
  if (left.size > 0) throw new AnsatzError(`there is no weight ${[...left][0]} to which a difference could be added`);
  return made;
}
