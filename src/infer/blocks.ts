/**
 * Parameters as decoding wants them: matrices that rows are multiplied by lie in blocks of 16 rows (docs/quantised.md),
 * in fewer bits or in all of them. Products with blocks give a row the same result whatever rows are beside it.
 */
import type { Model } from '../model/model.ts';
import { childOf, flatten, type Module, type ParamTree } from '../nn/index.ts';
import { type BlockType, cast, isBlock, noGrad, permute, quantise, reshape, scope, Tensor } from '../tensor/index.ts';
import { type WeightUse, weightUses } from './weights.ts';

export interface BlockChoice {
  /** Of matrices and experts. */
  readonly matrices: BlockType;
  /** Of tables that rows are looked up in, tied output matrices included; by default as matrices. */
  readonly tables?: BlockType;
}

const narrow = (type: BlockType): boolean => type === 'q8' || type === 'q4';

/** The type that a parameter takes; null: it stays as it is. */
export function blockTypeOf(use: WeightUse | undefined, o: BlockChoice): BlockType | null {
  if (use === undefined || use === 'other' || use === 'gate') return null;
  return use === 'table' || use === 'shared' ? (o.tables ?? o.matrices) : o.matrices;
}

/** A weight in blocks; rows are what comes out. */
function blockOf(w: Tensor, use: WeightUse, type: BlockType): Tensor {
  return scope(() => {
    if (use === 'columns') return quantise(permute(w, [0, 2, 1]), type);
    if (use === 'kernel') return quantise(reshape(w, [w.shape[0], w.size / w.shape[0]]), type);
    return quantise(w, type);
  });
}

/**
 * The parameters with their matrices in blocks; those that stay as they are, are the same tensors.
 * `release`: frees each matrix as soon as it has been put into blocks; the tree that was given is not usable then.
 */
export function inBlocks(model: Model, params: ParamTree, o: BlockChoice, release = false): ParamTree {
  const uses = weightUses(model);
  const own = (p: ParamTree, prefix: string): ParamTree => {
    const entries = Object.entries(p).flatMap(([name, w]): [string, Tensor][] => {
      if (!(w instanceof Tensor)) return [];
      const use = uses.get(prefix + name);
      // Beside a factor in 8 bits and fewer, the other one would be most of what is read.
      if (use === 'gate' && narrow(o.matrices) && w.dtype === 'f32')
        return [[name, noGrad(() => cast(w, 'bf16')).keep()]];
      const type = isBlock(w.dtype) ? null : blockTypeOf(use, o);
      return [[name, type && use ? blockOf(w, use, type).keep() : w]];
    });
    return Object.fromEntries(entries);
  };
  const walk = (module: Module, p: ParamTree, prefix: string): ParamTree => {
    const made: Record<string, Tensor | ParamTree> = { ...(module.forDecoding?.(p, o.matrices) ?? own(p, prefix)) };
    if (release) {
      const kept = new Set(Object.values(made));
      for (const w of Object.values(p)) if (w instanceof Tensor && !kept.has(w)) w.dispose();
    }
    for (const [name, child] of Object.entries(module.children ?? {}))
      if (name in p) made[name] = walk(child, childOf(p, name), `${prefix}${name}.`);
    return made;
  };
  return noGrad(() => walk(model, params, ''));
}

/** Frees the tensors of `blocks` that are not also in `params`. */
export function disposeBlocks(blocks: ParamTree, params: ParamTree): void {
  const kept = new Set(flatten(params).map(({ tensor }) => tensor));
  for (const { tensor } of flatten(blocks)) if (!kept.has(tensor)) tensor.dispose();
}
