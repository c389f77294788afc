/**
 * Layers as data. A module says which parameters it has; its forward function takes them as an argument. So freezing,
 * averaging, adapters and serialisation are functions over trees of tensors, not features of layers.
 */
import type { Device } from '../backend/device.ts';
import { AnsatzError } from '../backend/errors.ts';
import { type BlockType, fill, normal, RandomState, type Shape, scope, sizeOfShape, Tensor } from '../tensor/index.ts';

export type Init =
  | { readonly kind: 'normal'; readonly std: number }
  | { readonly kind: 'constant'; readonly value: number };

/**
 * What a parameter is for; parametrisations (muP) and optimiser groups read it.
 * embedding: a fixed number in (one-hot tokens, units of a fixed layer), width out. hidden: width in and out. output: width
 * in, a fixed number out (vocabulary, experts). vector: norms, biases, factors on single channels. constant: no axis grows
 * with the width.
 */
export type Role = 'embedding' | 'hidden' | 'output' | 'vector' | 'constant' | (string & {});

export interface ParamSpec {
  readonly shape: Shape;
  readonly init: Init;
  readonly role: Role;
  readonly fanIn: number;
  readonly fanOut: number;
  /** Whether weight decay applies: to matrices, not to norms and biases. */
  readonly decay: boolean;
  /** False for state that is saved with the weights but has no gradient (balancing biases, running counts). */
  readonly trainable?: boolean;
  /** Factors on the optimiser's learning rate, weight decay and epsilon for this parameter; 1 when absent. */
  readonly lrMult?: number;
  readonly decayMult?: number;
  readonly epsMult?: number;
  /** The fan-in over that of the model whose rates were tuned, for optimisers that need another rate than `lrMult`. */
  readonly widthMult?: number;
  /** Factor of the initialisation that makes up for depth (matrix()); parametrisations of depth take it out. */
  readonly depthGain?: number;
  /** Rows of the matrices that are packed into this one (queries, keys, values), where they are not one matrix. */
  readonly parts?: readonly number[];
  /** Whether the product is multiplied by Scales.logits: the output matrix of a head. */
  readonly logits?: boolean;
  /** Of an output matrix that is none of a head: it may start at zero. Nothing is a tie then, and gradients reach it. */
  readonly mayStartAtZero?: boolean;
  /**
   * Where the initial variance is 2 / (grows + fixed), of which only the first grows with the width: Glorot's, with a
   * fixed number of inputs or outputs. Absent: it goes with the width as its role says.
   */
  readonly fans?: { readonly grows: number; readonly fixed: number };
  /** The share of it that a token uses, on average: of experts, of units in blocks. 1 when absent. */
  readonly used?: number;
  /** Of layers in a stack, each of which may start as a single layer (stack.ts). */
  readonly stackOf?: {
    /** Whether the single layer has rows and columns the other way. */
    readonly turned: boolean;
    /** Why a stack of copies is another function than the single layer; absent when it is the same. */
    readonly unlike?: string;
  };
}

/** What a layer's saved state says about how it is doing, in a few numbers: balance of experts, use of units. */
export interface Monitor {
  /** Names of the layer's state. */
  readonly state: readonly string[];
  measure(...state: ArrayLike<number>[]): Readonly<Record<string, number>>;
}

export interface Module {
  readonly params?: Readonly<Record<string, ParamSpec>>;
  readonly children?: Readonly<Record<string, Module>>;
  /** Replaces the specs of the parameters below, by name (parametrisations). */
  adjust?(p: NamedParam): ParamSpec;
  /**
   * Own parameters as decoding wants them, matrices in blocks of a type (docs/quantised.md); forward() takes either form.
   * Absent, or null: each by itself, as src/infer/blocks.ts puts them.
   */
  forDecoding?(p: ParamTree, type: BlockType): ParamTree | null;
  readonly monitor?: Monitor;
  /** In-place updates of untrained state at the end of an optimiser step, inside the captured step. */
  afterStep?(p: ParamTree): void;
}

/** Tensors under the names their modules gave them. */
export type ParamTree = { readonly [name: string]: Tensor | ParamTree };

/** A parameter by its dotted path ("blocks.3.ffn.up"). */
export interface NamedParam {
  readonly path: string;
  readonly spec: ParamSpec;
}

/** Every parameter of a module, in a fixed order. */
export function declared(module: Module, prefix = ''): NamedParam[] {
  const own = Object.entries(module.params ?? {}).map(([name, spec]) => ({ path: prefix + name, spec }));
  const below = Object.entries(module.children ?? {}).flatMap(([name, child]) => declared(child, `${prefix}${name}.`));
  const all = [...own, ...below];
  return module.adjust ? all.map((p) => ({ ...p, spec: module.adjust!(p) })) : all;
}

export const isTrainable = (p: NamedParam): boolean => p.spec.trainable !== false;

/** Trainable parameters. */
export const countParams = (module: Module): number =>
  declared(module)
    .filter(isTrainable)
    .reduce((n, p) => n + sizeOfShape(p.spec.shape), 0);

/** Of those, what a token uses: the active parameters of a mixture. */
export const countUsed = (params: readonly NamedParam[]): number =>
  Math.round(params.filter(isTrainable).reduce((n, { spec }) => n + sizeOfShape(spec.shape) * (spec.used ?? 1), 0));

/** Runs every module's afterStep, children after their parents. */
export function afterStep(module: Module, p: ParamTree): void {
  module.afterStep?.(p);
  for (const [name, child] of Object.entries(module.children ?? {})) afterStep(child, childOf(p, name));
}

/** What every layer that is monitored says; layers without their state (adapted ones, for decoding) say nothing. */
export async function measured(module: Module, p: ParamTree, path = ''): Promise<Measured[]> {
  const own: Measured[] = [];
  if (module.monitor?.state.every((name) => name in p)) {
    const state = await Promise.all(module.monitor.state.map((name) => tensorOf(p, name).data()));
    own.push({ layer: path, measures: module.monitor.measure(...state) });
  }
  const below: Measured[][] = [];
  for (const [name, child] of Object.entries(module.children ?? {}))
    below.push(await measured(child, childOf(p, name), path === '' ? name : `${path}.${name}`));
  return [...own, ...below.flat()];
}

export interface Measured {
  readonly layer: string;
  readonly measures: Readonly<Record<string, number>>;
}

/** FNV-1a: a parameter's random stream depends on its own path only, so that adding a part leaves the others' values. */
function streamOf(path: string): number {
  let h = 0x811c9dc5;
  for (let k = 0; k < path.length; k++) h = Math.imul(h ^ path.charCodeAt(k), 0x01000193);
  return h >>> 1;
}

/** Fresh f32 parameters, drawn on the device. Same seed, same path, same shape: same values. */
export function initialise(module: Module, device: Device, seed: number): ParamTree {
  return scope(() => {
    const random = new RandomState(device, seed);
    const tree = buildTree(declared(module), ({ path, spec }) => {
      const t =
        spec.init.kind === 'normal'
          ? normal(random, spec.shape, streamOf(path), 0, spec.init.std)
          : fill(device, spec.shape, spec.init.value);
      return spec.trainable === false ? t.keep() : t.parameter();
    });
    random.tensor.dispose();
    return tree;
  });
}

/** A tree from named parameters. */
export function buildTree(params: readonly NamedParam[], make: (p: NamedParam) => Tensor): ParamTree {
  const root: Record<string, unknown> = {};
  for (const p of params) {
    const parts = p.path.split('.');
    let at = root;
    for (const part of parts.slice(0, -1)) at = (at[part] ??= {}) as Record<string, unknown>;
    at[parts[parts.length - 1]] = make(p);
  }
  return root as ParamTree;
}

/** All tensors of a tree with their paths, in the tree's order. */
export function flatten(tree: ParamTree, prefix = ''): { path: string; tensor: Tensor }[] {
  return Object.entries(tree).flatMap(([name, value]) =>
    value instanceof Tensor ? [{ path: prefix + name, tensor: value }] : flatten(value, `${prefix}${name}.`),
  );
}

/** A tensor of a module's own parameters. */
export function tensorOf(tree: ParamTree, name: string): Tensor {
  const t = tree[name];
  if (!(t instanceof Tensor)) throw new AnsatzError(`parameter '${name}' is missing`);
  return t;
}

/** The parameters of a child. */
export function childOf(tree: ParamTree, name: string): ParamTree {
  const t = tree[name];
  if (t instanceof Tensor) throw new AnsatzError(`'${name}' is a tensor, not a part`);
  return t ?? {};
}

export function disposeTree(tree: ParamTree): void {
  for (const { tensor } of flatten(tree)) tensor.dispose();
}
