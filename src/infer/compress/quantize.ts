/**
 * A model in fewer bits, in the forms that decoding reads. Matrices and units take 4 or 8; embeddings and output matrices
 * 8 unless told otherwise; factors and convolutions over modules 8, as all modules share their errors, and the other
 * factor 16. What is none of these (norms, routers, controllers) stays as it is.
 */
import { buildTree, childOf, flatten, type Module, type NamedParam, type ParamTree } from '../../nn/index.ts';
import { cast, noGrad, quantise, scope, Tensor } from '../../tensor/index.ts';
import type { LoadedModel } from '../../train/session.ts';
import type { Turned } from '../../train/stored.ts';
import { weightUses } from '../weights.ts';
import { type GptqOptions, gptq, gptqExperts } from './gptq.ts';
import { type Calibration, eachCalibrated } from './stages.ts';
import { inRows, saves, type Target, targetsOf, turnedOf } from './targets.ts';

export type Bits = 8 | 4;

export interface QuantizeOptions {
  readonly bits: Bits;
  /** Of embeddings and output matrices. */
  readonly embeddingBits: Bits;
  readonly method: 'rtn' | 'gptq';
  readonly gptq: GptqOptions;
  /**
   * Matrices are calibrated together until their Gram matrices take this many bytes; the next ones see what those that
   * are done have become.
   */
  readonly memory: number;
  readonly onProgress?: (done: number, total: number) => void;
}

export interface QuantizeReport {
  /** Parameters by the type they have now. */
  readonly types: Readonly<Record<string, number>>;
  /** Passes over the calibration text. */
  readonly passes: number;
  /** Experts that no row of it was routed to: rounded to nearest. */
  readonly unseenExperts: number;
}

const typeOf = (bits: Bits): 'q8' | 'q4' => (bits === 8 ? 'q8' : 'q4');

/** The model's parameters in blocks; those that stay as they are, are the same tensors. */
export async function quantizeModel(
  loaded: LoadedModel,
  o: QuantizeOptions,
  calibration: Calibration | null,
): Promise<{ params: ParamTree; turned: ReadonlyMap<string, Turned>; report: QuantizeReport }> {
  const { model } = loaded;
  const now = new Map(flatten(loaded.params).map(({ path, tensor }) => [path, tensor]));
  const tree = (): ParamTree =>
    buildTree(
      [...now.keys()].map((path) => ({ path }) as NamedParam),
      ({ path }) => now.get(path)!,
    );
  const type = (t: Target): 'q8' | 'q4' => typeOf(t.shared ? 8 : t.edge ? o.embeddingBits : o.bits);
  // Kernels of one layer go together: it takes all of them in blocks, or none.
  const targets = targetsOf(model, loaded.params).filter(
    (t) => !t.repacked && (t.use === 'kernel' || saves(t, type(t))),
  );
  let [done, unseenExperts] = [0, 0];
  const put = (t: Target, weight: Tensor): void => {
    now.set(t.path, weight.keep());
    o.onProgress?.(++done, targets.length);
  };

  // Tables are looked up in, and a tied one's rows must serve both of its uses: nothing to calibrate.
  const calibrated = (t: Target): boolean =>
    o.method === 'gptq' && t.use !== 'table' && t.use !== 'shared' && !t.shared && !(t.edge && o.embeddingBits === 8);
  const plainly = (t: Target): void => noGrad(() => scope(() => put(t, quantise(inRows(t), type(t)))));
  const packed = packUnits(model, loaded.params, typeOf(o.bits), now);
  for (const t of targets.filter((x) => !calibrated(x))) plainly(t);
  // As decoding wants them beside factors in blocks.
  for (const [path, use] of weightUses(model)) {
    const w = now.get(path);
    if (use === 'gate' && w?.dtype === 'f32') now.set(path, noGrad(() => cast(w, 'bf16')).keep());
  }
  const sums = { statistic: 'gram', memory: o.memory } as const;
  if (!calibration && targets.some(calibrated)) throw new Error('gptq without calibration');
  const passes = !calibration
    ? 0
    : await eachCalibrated(loaded, targets.filter(calibrated), sums, calibration, tree, (t, h) =>
        scope(() => {
          if (!h) return plainly(t);
          const w = inRows(t);
          if (w.rank === 2) {
            const made = gptq(w, h, type(t), o.gptq, calibration.tokens >= t.inputs);
            return made ? put(t, made) : plainly(t);
          }
          const { weights, unseen } = gptqExperts(w, h, type(t), o.gptq);
          unseenExperts += unseen;
          put(t, weights);
        }),
      );
  const types: Record<string, number> = {};
  const count = (dtype: string, n: number): void => {
    types[dtype] = (types[dtype] ?? 0) + n;
  };
  for (const [path, t] of now) if (!packed.has(path)) count(t.dtype, t.size);
  for (const parameters of packed.values()) count(typeOf(o.bits), parameters);
  const turned = new Map(targets.flatMap((t) => [turnedOf(t)].flatMap((how) => (how ? [[t.path, how] as const] : []))));
  return { params: tree(), turned, report: { types, passes, unseenExperts } };
}

/** Puts what layers have for decoding in place of their parameters: by path, how many parameters are in it. */
function packUnits(model: Module, params: ParamTree, type: 'q8' | 'q4', now: Map<string, Tensor>): Map<string, number> {
  const packed = new Map<string, number>();
  const sizes = (tensors: readonly Tensor[], of: 'size' | 'bytes'): number =>
    tensors.reduce((n, t) => n + (of === 'size' ? t.size : t.storage.memory.bytes), 0);
  const walk = (module: Module, p: ParamTree, prefix: string): void => {
    const made = module.forDecoding?.(p, type);
    if (made) {
      const [own, all] = [p, made].map((x) =>
        Object.entries(x).filter((e): e is [string, Tensor] => e[1] instanceof Tensor),
      );
      const gone = own.filter(([name, t]) => made[name] !== t);
      const come = all.filter(([name, t]) => p[name] !== t);
      const [before, after] = [gone, come].map((list) => list.map(([, t]) => t));
      if (sizes(after, 'bytes') < sizes(before, 'bytes')) {
        for (const [name] of gone) now.delete(prefix + name);
        for (const [name, t] of come) now.set(prefix + name, t);
        // Parameters that have another form under their own name count as what they are, others as what they are in.
        const inside = gone.flatMap(([name, t]) => (name in made ? [] : [t]));
        const fresh = come.filter(([name]) => !(name in p));
        fresh.forEach(([name], k) => {
          packed.set(prefix + name, k === 0 ? sizes(inside, 'size') : 0);
        });
      } else for (const t of after) t.dispose();
    }
    for (const [name, child] of Object.entries(module.children ?? {}))
      if (name in p) walk(child, childOf(p, name), `${prefix}${name}.`);
  };
  noGrad(() => walk(model, params, ''));
  return packed;
}
