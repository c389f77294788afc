/** Which parameters of a model can be kept in fewer bits or thinned out, and in what form they are worked on. */
import { storageOf } from '../../backend/dtype.ts';
import { MetaDevice } from '../../backend/meta/device.ts';
import type { Model } from '../../model/model.ts';
import { childOf, declared, flatten, initialise, type Module, type ParamTree } from '../../nn/index.ts';
import { isBlock, noGrad, permute, scope, Tensor } from '../../tensor/index.ts';
import { weightUses } from '../weights.ts';

const uses = ['matrix', 'experts', 'columns', 'table', 'shared'] as const;

export interface Target {
  readonly path: string;
  /** As in weightUses(). */
  readonly use: (typeof uses)[number];
  readonly weight: Tensor;
  /** Embeddings and output matrices: read row by row, or the last thing before the logits. */
  readonly edge: boolean;
  /** Inputs of a row. */
  readonly inputs: number;
  /** Decoding wants it whole, to bring it into a form of its layer's own. */
  readonly repacked: boolean;
}

/** Those that are multiplied by or looked up in, in the order in which a pass comes to them. */
export function targetsOf(model: Model, params: ParamTree): Target[] {
  const tensors = new Map(flatten(params).map(({ path, tensor }) => [path, tensor]));
  const roles = new Map(declared(model).map(({ path, spec }) => [path, spec.role]));
  const other = repacked(model);
  return [...weightUses(model)].flatMap(([path, found]) => {
    const weight = tensors.get(path)!;
    const use = uses.find((u) => u === found);
    if (!use || isBlock(weight.dtype)) return [];
    const edge = use === 'table' || use === 'shared' || roles.get(path) === 'output';
    const inputs = weight.shape[weight.rank - (use === 'columns' ? 2 : 1)];
    return [{ path, use, weight, edge, inputs, repacked: other.has(path) }];
  });
}

/** Parameters that layers bring into a form of their own for decoding. */
function repacked(model: Model): Set<string> {
  const out = new Set<string>();
  const walk = (module: Module, p: ParamTree, prefix: string): void => {
    const made = module.forDecoding?.(p, 'q8');
    if (made) {
      const kept = new Set(Object.values(made));
      for (const [name, w] of Object.entries(p)) if (w instanceof Tensor && !kept.has(w)) out.add(prefix + name);
    }
    for (const [name, child] of Object.entries(module.children ?? {}))
      if (name in p) walk(child, childOf(p, name), `${prefix}${name}.`);
  };
  scope(() => noGrad(() => walk(model, initialise(model, new MetaDevice(), 0), '')));
  return out;
}

/** The weight with its outputs in rows, [.., out, in]. */
export const inRows = ({ use, weight }: Target): Tensor => (use === 'columns' ? permute(weight, [0, 2, 1]) : weight);

/** Whether blocks of a type take less memory than the weight does: they are padded to 16 rows and 64 columns. */
export function saves({ use, weight }: Target, type: 'q8' | 'q4'): boolean {
  const { shape } = weight;
  const rows = use === 'columns' ? [shape[0], shape[2], shape[1]] : shape;
  return storageOf(type, rows).elements < weight.storage.memory.bytes;
}

/** Bytes of a tree's tensors. */
export function weightBytes(params: ParamTree): number {
  const memories = new Set(flatten(params).map(({ tensor }) => tensor.storage.memory));
  return [...memories].reduce((n, m) => n + m.bytes, 0);
}
