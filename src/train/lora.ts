/**
 * Low-rank adaptation (Hu et al. 2021): the weights of another run stay as they are, and each matrix W learns a
 * difference (alpha / rank) B A of low rank. It is a function over a model's parameters: W + (alpha / rank) B A is
 * computed in the step, from tensors that have gradients and one that has not, so layers know nothing of it. Only A
 * and B have gradients that are kept, and optimiser state.
 *
 * The other run may be quantised (QLoRA, Dettmers et al. 2023): its weights stay in their blocks, and a product adds
 * (alpha / rank) (x A^T) B^T to theirs (AdaptedTensor).
 */
import { z } from 'zod';
import { AnsatzError } from '../backend/errors.ts';
import type { EncoderPart, Model } from '../model/model.ts';
import { declared, type Module, type NamedParam, type ParamSpec, type ParamTree } from '../nn/index.ts';
import { AdaptedTensor, type BlockType, isBlock, matmul, noGrad, quantise, Tensor } from '../tensor/index.ts';
import type { TensorFile } from './stored.ts';

export const adapterSchema = z.strictObject({
  kind: z.literal('lora'),
  rank: z.int().positive().default(8),
  /** The difference is multiplied by alpha / rank; by default alpha is twice the rank. */
  alpha: z.number().positive().optional(),
  /** Matrices that are adapted: those whose path holds one of these; by default every hidden matrix. */
  targets: z.array(z.string().min(1)).min(1).optional(),
});
export type AdapterConfig = z.output<typeof adapterSchema>;

const ROOT = 'lora';
export const scaleOf = ({ rank, alpha = 2 * rank }: AdapterConfig): number => alpha / rank;

const isTarget = ({ path, spec }: NamedParam, { targets }: AdapterConfig): boolean =>
  spec.role === 'hidden' &&
  spec.shape.length === 2 &&
  spec.trainable !== false &&
  (targets === undefined || targets.some((t) => path.includes(t)));

/** A is drawn as any matrix, B is 0: at the start nothing is changed. */
function factors(shape: readonly number[], rank: number): Readonly<Record<'a' | 'b', ParamSpec>> {
  const [out, inputs] = shape;
  const common = { role: 'adapter', decay: false } as const;
  return {
    a: { ...common, shape: [rank, inputs], init: { kind: 'normal', std: inputs ** -0.5 }, fanIn: inputs, fanOut: rank },
    b: { ...common, shape: [out, rank], init: { kind: 'constant', value: 0 }, fanIn: rank, fanOut: out },
  };
}

/** Modules that declare parameters at the given paths. */
function modulesAt(params: ReadonlyMap<string, Readonly<Record<string, ParamSpec>>>): Module {
  const own = params.get('');
  const below = new Map<string, Map<string, Readonly<Record<string, ParamSpec>>>>();
  for (const [path, specs] of params) {
    if (path === '') continue;
    const [head, ...rest] = path.split('.');
    if (!below.has(head)) below.set(head, new Map());
    below.get(head)!.set(rest.join('.'), specs);
  }
  const children = Object.fromEntries([...below].map(([name, inner]) => [name, modulesAt(inner)]));
  return { ...(own && { params: own }), children };
}

/** The model with its parameters frozen and a difference of low rank for each of its matrices. */
export function withLora(model: Model, adapter: AdapterConfig): Model {
  const targets = declared(model).filter((p) => isTarget(p, adapter));
  if (targets.length === 0)
    throw new AnsatzError('adapter lora: none of its targets is a matrix of this model', {
      hint: 'leave adapter.targets out, or name parts of paths: attention, ffn',
    });
  const adapted = new Set(targets.map((p) => p.path));
  const own = modulesAt(new Map(targets.map(({ path, spec }) => [path, factors(spec.shape, adapter.rank)])));
  const scale = scaleOf(adapter);

  /** The tree that the model itself computes with. */
  const merged = (p: ParamTree): ParamTree => {
    const walk = (tree: ParamTree, lora: ParamTree | undefined, prefix: string): ParamTree => {
      const out: Record<string, Tensor | ParamTree> = {};
      for (const [name, value] of Object.entries(tree)) {
        if (prefix === '' && name === ROOT) continue;
        const path = prefix + name;
        const factor = lora?.[name] as ParamTree | undefined;
        if (!(value instanceof Tensor)) out[name] = walk(value, factor, `${path}.`);
        else if (!adapted.has(path)) out[name] = value;
        else {
          const { a, b } = factor as Record<'a' | 'b', Tensor>;
          if (isBlock(value.dtype)) out[name] = new AdaptedTensor(value, a, b, scale);
          else out[name] = matmul(b, a, { alpha: scale, addend: value, compute: 'f32', out: 'f32' });
        }
      }
      return out;
    };
    return walk(p, p[ROOT] as ParamTree, '');
  };

  const encoder: EncoderPart | undefined = model.encoder && {
    ...model.encoder,
    encode: (p, ...rest) => model.encoder!.encode(merged(p), ...rest),
    crossKeyValues: (p, ...rest) => model.encoder!.crossKeyValues(merged(p), ...rest),
    decode: (p, ...rest) => model.encoder!.decode(merged(p), ...rest),
  };
  return {
    spec: model.spec,
    params: model.params,
    children: { ...model.children, [ROOT]: own },
    adjust: (p) => {
      if (p.path.startsWith(`${ROOT}.`)) return p.spec;
      return { ...(model.adjust ? model.adjust(p) : p.spec), trainable: false };
    },
    prepare: (device) => model.prepare(device),
    hidden: (p, batch, c) => model.hidden(merged(p), batch, c),
    logits: (p, h, c) => model.logits(merged(p), h, c),
    loss: (p, batch, c) => model.loss(merged(p), batch, c),
    ...(encoder && { encoder }),
    ...(model.startFrom && { startFrom: (path: string) => model.startFrom!(path) }),
  };
}

/**
 * The parameters of a quantised run with the differences of a file beside them, for inference: in blocks as well, so that
 * a row's result depends on nothing beside it.
 */
export async function beside(
  params: ParamTree,
  file: TensorFile,
  adapter: AdapterConfig,
  type: BlockType,
): Promise<ParamTree> {
  const names = new Set(file.names);
  const factor = async (name: string, { device }: Tensor): Promise<Tensor> => {
    const values = (await file.read(name)) as Float32Array;
    const plain = Tensor.from(device, values, file.info(name).shape);
    const packed = noGrad(() => quantise(plain, type)).keep();
    plain.dispose();
    return packed;
  };
  const walk = async (tree: ParamTree, prefix: string): Promise<ParamTree> => {
    const out: Record<string, Tensor | ParamTree> = {};
    for (const [name, value] of Object.entries(tree)) {
      const path = prefix + name;
      if (!(value instanceof Tensor)) out[name] = await walk(value, `${path}.`);
      else if (!names.has(`${ROOT}.${path}.a`)) out[name] = value;
      else {
        const [a, b] = [await factor(`${ROOT}.${path}.a`, value), await factor(`${ROOT}.${path}.b`, value)];
        out[name] = new AdaptedTensor(value, a, b, scaleOf(adapter));
      }
    }
    return out;
  };
  return walk(params, '');
}

/** Matrices that a checkpoint has differences for: their paths, and the names of the factors. */
export const adaptedIn = (names: readonly string[]): { path: string; a: string; b: string }[] =>
  names.flatMap((a) => {
    const path = /^lora\.(.*)\.a$/.exec(a)?.[1];
    return path === undefined ? [] : [{ path, a, b: `${ROOT}.${path}.b` }];
  });

/** A checkpoint's tensors with the differences added to the matrices that they are for. */
export function withDifferences(file: TensorFile, adapter: AdapterConfig | undefined): TensorFile {
  if (!adapter) return file;
  const names = new Set(file.names);
  /** Adds a matrix's difference to its elements from `first` on. */
  const add = async (name: string, w: Float32Array, first: number): Promise<void> => {
    const [a, b] = ['a', 'b'].map((f) => `${ROOT}.${name}.${f}`);
    if (!names.has(a)) return;
    const factor = async (f: string): Promise<Float32Array> => (await file.read(f)) as Float32Array;
    addProduct(w, first, await factor(b), await factor(a), adapter);
  };
  return {
    path: file.path,
    names: file.names.filter((name) => !name.startsWith(`${ROOT}.`)),
    info: (name) => file.info(name),
    ...(file.fd === undefined ? {} : { fd: file.fd }),
    changes: (name) => names.has(`${ROOT}.${name}.a`),
    read: async (name) => {
      const w = await file.read(name);
      await add(name, w as Float32Array, 0);
      return w;
    },
    readInto: async (name, target, start = 0) => {
      await file.readInto(name, target, start);
      if (target instanceof Float32Array) await add(name, target, start / target.BYTES_PER_ELEMENT);
    },
  };
}

/** Elements of W + (alpha / rank) B A from `first` on, where w holds those of W. */
function addProduct(w: Float32Array, first: number, b: Float32Array, a: Float32Array, adapter: AdapterConfig): void {
  const { rank } = adapter;
  const scale = scaleOf(adapter);
  const inputs = a.length / rank;
  for (let done = 0; done < w.length; ) {
    const [row, col] = [Math.floor((first + done) / inputs), (first + done) % inputs];
    const into = w.subarray(done, done + inputs - col);
    for (let r = 0; r < rank; r++) {
      const factor = scale * b[row * rank + r];
      const from = a.subarray(r * inputs + col, (r + 1) * inputs);
      for (let k = 0; k < into.length; k++) into[k] += factor * from[k];
    }
    done += into.length;
  }
}
