/** What layers bring their parameters into for decoding (Module.forDecoding), found without values. */
import type { DType } from '../backend/dtype.ts';
import { MetaDevice } from '../backend/meta/device.ts';
import { type BlockType, noGrad, type Shape, scope, Tensor } from '../tensor/index.ts';
import { childOf, initialise, type Module, type ParamTree } from './module.ts';

/** One layer's: its own parameters `replaces` are not there any more, `adds` are. */
export interface DecodingForm {
  readonly replaces: readonly string[];
  readonly adds: readonly { readonly path: string; readonly dtype: DType; readonly shape: Shape }[];
}

/** The forms of a model's layers, matrices in blocks of a type. */
export function decodingForms(model: Module, type: BlockType): DecodingForm[] {
  const forms: DecodingForm[] = [];
  const walk = (module: Module, p: ParamTree, prefix: string): void => {
    const made = module.forDecoding?.(p, type);
    if (made) {
      const adds = Object.entries(made).flatMap(([name, t]) =>
        t instanceof Tensor && p[name] !== t ? [{ path: prefix + name, dtype: t.dtype, shape: t.shape }] : [],
      );
      const replaces = Object.entries(p).flatMap(([name, t]) =>
        t instanceof Tensor && made[name] !== t ? [prefix + name] : [],
      );
      forms.push({ replaces, adds });
    }
    for (const [name, child] of Object.entries(module.children ?? {}))
      if (name in p) walk(child, childOf(p, name), `${prefix}${name}.`);
  };
  scope(() => noGrad(() => walk(model, initialise(model, new MetaDevice(), 0), '')));
  return forms;
}
