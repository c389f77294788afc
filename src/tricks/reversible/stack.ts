/**
 * Reversible residual streams (Gomez et al. 2017; Kitaev et al. 2020, section 4). Two streams; a half step adds a branch
 * of one to the other, then they change places:
 *
 *     (a, b) -> (b, a + f(b))        undone by        (u, v) -> (v - f(u), u)
 *
 * so that the backward pass rebuilds what a block was given from what it gave, and nothing of the forward pass is kept.
 */
import { Choices, type ForwardContext, flatten, type Mixer, type Norm, type ParamTree } from '../../nn/index.ts';
import {
  addScaled,
  affine,
  custom,
  gradEnabled,
  pullBack,
  recording,
  scope,
  sub,
  Tensor,
  zeros,
} from '../../tensor/index.ts';

/** One half step: the branch f(x) = part(norm(x)), with where its parameters lie. */
export interface Half {
  readonly norm: Norm;
  readonly part: Mixer;
  readonly normParams: ParamTree;
  readonly partParams: ParamTree;
  /** The last half of a block: what its streams hold then is noted under this name for measurements. */
  readonly tap?: string;
}

export interface StackOptions {
  /** Keep every activation as an ordinary stack does: the same values and gradients, faster. */
  readonly store: boolean;
  /** Branches are rounded to multiples of 2^-grid, so that f32 adds and subtracts them exactly; 0: they are not. */
  readonly grid: number;
}

export type Streams = readonly [Tensor, Tensor];

/** Nearest multiple of 2^-grid for |x| < 2^(22 - grid): adding 1.5 2^(23 - grid) leaves no bits below it. */
export function onGrid(x: Tensor, grid: number): Tensor {
  if (grid === 0) return x;
  const magic = 1.5 * 2 ** (23 - grid);
  return affine(affine(x, 1, magic), 1, -magic);
}

/** What the parts make of both streams, after all half steps. Streams are f32 [B, T, d]. */
export function runStack(halves: readonly Half[], streams: Streams, o: StackOptions, c: ForwardContext): Streams {
  const start = streams.map((x) => onGrid(x, o.grid)) as [Tensor, Tensor];
  // Without a grid nobody needs a branch by itself: its sum with a stream is fused into its last product.
  const none = o.grid === 0 ? null : noneOf(start[0]);
  return o.store || !gradEnabled() ? keeping(halves, start, none, o, c) : rebuilding(halves, start, none, o, c);
}

const branch = (h: Half, x: Tensor, residual: Tensor, c: ForwardContext): Tensor =>
  h.part.forward(h.partParams, h.norm.forward(h.normParams, x, c), residual, c);

/** a + f(b). */
function advance(h: Half, a: Tensor, b: Tensor, none: Tensor | null, o: StackOptions, c: ForwardContext): Tensor {
  const next = none ? addScaled(a, onGrid(branch(h, b, none, c), o.grid), 1, 1) : branch(h, b, a, c);
  if (h.tap) c.taps?.set(h.tap, addScaled(b, next, 0.5, 0.5));
  return next;
}

const noneOf = (like: Tensor): Tensor => zeros(like.device, like.shape);

function keeping(
  halves: readonly Half[],
  [x1, x2]: Streams,
  none: Tensor | null,
  o: StackOptions,
  c: ForwardContext,
): Streams {
  let [a, b] = [x1, x2];
  for (const h of halves) [a, b] = [b, advance(h, a, b, none, o, c)];
  return [a, b];
}

/** A tensor as an input of a pass of its own. */
function leafOf(t: Tensor): Tensor {
  const leaf = t.detach();
  leaf.requiresGrad = true;
  return leaf;
}

/** The inputs of the whole stack besides its streams: tensors that want gradients, and leaves that stand for them. */
class Leaves {
  readonly outer: Tensor[] = [];
  readonly inner: Tensor[] = [];

  tree(tree: ParamTree): ParamTree {
    return Object.fromEntries(
      Object.entries(tree).map(([name, t]) => [name, t instanceof Tensor ? this.leaf(t) : this.tree(t)]),
    );
  }

  private leaf(t: Tensor): Tensor {
    if (!t.requiresGrad) return t;
    const known = this.outer.indexOf(t);
    if (known >= 0) return this.inner[known];
    this.outer.push(t);
    this.inner.push(leafOf(t));
    return this.inner[this.inner.length - 1];
  }
}

/** What a half step's first pass leaves for its second. */
interface Passed {
  readonly choices: Choices;
  /** Where its loss terms stand among the outputs of the stack. */
  readonly terms: number[];
}

function rebuilding(
  halves: readonly Half[],
  x: Streams,
  none: Tensor | null,
  o: StackOptions,
  c: ForwardContext,
): Streams {
  const leaves = new Leaves();
  const own = halves.map((h) => ({
    ...h,
    normParams: leaves.tree(h.normParams),
    partParams: leaves.tree(h.partParams),
  }));
  const inner: ForwardContext = { ...c, positionParams: leaves.tree(c.positionParams) };
  const passed: Passed[] = [];
  const names: string[] = [];

  const forward = (): Tensor[] => {
    const made = new Owned();
    let [a, b] = x;
    const terms: Tensor[] = [];
    for (const h of own) {
      const choices = new Choices();
      const r = scope(() => {
        const losses = new Map<string, Tensor>();
        const taps = c.taps ? new Map<string, Tensor>() : null;
        const context = { ...passOf(inner, choices), losses, taps };
        return { next: advance(h, a, b, none, o, context), losses, taps, kept: choices.kept };
      });
      for (const [name, t] of r.taps ?? []) c.taps!.set(name, t);
      passed.push({ choices, terms: [...r.losses.values()].map((t) => 2 + terms.push(t) - 1) });
      names.push(...r.losses.keys());
      made.replace(a, r.next);
      [a, b] = [b, r.next];
    }
    return [a, b, ...terms];
  };

  const [y1, y2, ...terms] = custom('reversible', [...x, ...leaves.outer], forward, ({ outputs, grads, take }) => {
    const zero = noneOf(outputs[0]);
    const sums = leaves.outer.map((_, k) => take(2 + k));
    const index = new Map(leaves.inner.map((t, k) => [t, k]));
    const [streams, slopes] = [new Owned(), new Owned()];
    let [u, v] = outputs;
    let [du, dv] = [grads[0], grads[1] ?? zero];
    for (let k = own.length - 1; k >= 0; k--) {
      const used = ownLeaves(own[k], inner, index);
      const r = scope(() => {
        const at = leafOf(u);
        const again = secondPass(own[k], at, zero, o, { ...inner, taps: null }, passed[k].choices);
        const a = sub(v, again.f);
        const [sources, seeds] = [[again.f], [dv]];
        again.losses.forEach((term, j) => {
          const g = grads[passed[k].terms[j]];
          if (!g) return;
          sources.push(term);
          seeds.push(g);
        });
        const wrt = [at, ...used.map((j) => leaves.inner[j])];
        const [db, ...rest] = pullBack(sources, seeds, wrt, [du, ...used.map((j) => sums[j])]);
        return { a, db: db ?? zero, rest };
      });
      used.forEach((j, n) => {
        sums[j] = r.rest[n];
      });
      streams.replace(v, r.a);
      [u, v] = [r.a, u];
      // Gradients may be views of each other.
      if (du) slopes.replace(du, r.db, [dv, ...sums]);
      else slopes.add(r.db);
      [du, dv] = [dv, r.db];
    }
    return [du, dv, ...sums];
  });
  terms.forEach((t, k) => {
    c.losses.set(freeName(c.losses, names[k]), t);
  });
  return [y1, y2];
}

/** The context of a pass that may be repeated: its random streams are choices too. */
const passOf = (c: ForwardContext, choices: Choices): ForwardContext => ({
  ...c,
  choices,
  nextStream: () => choices.take(c.nextStream),
});

/** Places, among the stack's leaves, of those that a half step may use. */
function ownLeaves(h: Half, c: ForwardContext, index: ReadonlyMap<Tensor, number>): number[] {
  const trees = [h.normParams, h.partParams, c.positionParams];
  const places = trees.flatMap((tree) => flatten(tree).flatMap(({ tensor }) => index.get(tensor) ?? []));
  return [...new Set(places)];
}

/** f once more, recorded, with the random streams and choices of the first pass. */
function secondPass(
  h: Half,
  at: Tensor,
  zero: Tensor,
  o: StackOptions,
  c: ForwardContext,
  choices: Choices,
): { f: Tensor; losses: Tensor[] } {
  const losses = new Map<string, Tensor>();
  choices.rewind();
  const f = recording(() => onGrid(branch(h, at, zero, { ...passOf(c, choices), losses }), o.grid));
  choices.end();
  return { f, losses: [...losses.values()] };
}

/** Layers of several stacks count from 0: a second term of a name gets a number. */
function freeName(losses: ReadonlyMap<string, Tensor>, name: string): string {
  let free = name;
  for (let n = 2; losses.has(free); n++) free = `${name}.${n}`;
  return free;
}

/** Tensors that a pass made and may free as soon as they are replaced: what an eager pass holds must not grow. */
class Owned {
  private readonly list = new Set<Tensor>();

  add(t: Tensor): void {
    this.list.add(t);
  }

  replace(old: Tensor, by: Tensor, others: readonly (Tensor | null)[] = []): void {
    const used = [by, ...others].some((t) => t?.storage === old.storage);
    if (this.list.delete(old) && !used) old.dispose();
    this.list.add(by);
  }
}
