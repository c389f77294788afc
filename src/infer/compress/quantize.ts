/**
 * A model in fewer bits. Matrices take 4 or 8, embeddings and output matrices 8 unless told otherwise; what is neither
 * (norms, routers, controllers, convolutions) stays as it is.
 */
import { buildTree, declared, flatten, type ParamTree } from '../../nn/index.ts';
import { noGrad, quantise, scope, type Tensor } from '../../tensor/index.ts';
import type { LoadedModel } from '../../train/session.ts';
import { type GptqOptions, gptq, gptqExperts } from './gptq.ts';
import { type Calibration, eachCalibrated } from './stages.ts';
import { inRows, saves, type Target, targetsOf } from './targets.ts';

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
): Promise<{ params: ParamTree; columns: ReadonlySet<string>; report: QuantizeReport }> {
  const { model } = loaded;
  const named = declared(model);
  const now = new Map(flatten(loaded.params).map(({ path, tensor }) => [path, tensor]));
  const tree = (): ParamTree => buildTree(named, ({ path }) => now.get(path)!);
  const type = (t: Target): 'q8' | 'q4' => typeOf(t.edge ? o.embeddingBits : o.bits);
  const targets = targetsOf(model, loaded.params).filter((t) => !t.repacked && saves(t, type(t)));
  let [done, unseenExperts] = [0, 0];
  const put = (t: Target, weight: Tensor): void => {
    now.set(t.path, weight.keep());
    o.onProgress?.(++done, targets.length);
  };

  // Tables are looked up in, and a tied one's rows must serve both of its uses: nothing to calibrate.
  const calibrated = (t: Target): boolean =>
    o.method === 'gptq' && t.use !== 'table' && t.use !== 'shared' && !(t.edge && o.embeddingBits === 8);
  const plainly = (t: Target): void => noGrad(() => scope(() => put(t, quantise(inRows(t), type(t)))));
  for (const t of targets.filter((x) => !calibrated(x))) plainly(t);
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
  for (const { tensor } of flatten(tree())) types[tensor.dtype] = (types[tensor.dtype] ?? 0) + tensor.size;
  const columns = new Set(targets.filter((t) => t.use === 'columns').map((t) => t.path));
  return { params: tree(), columns, report: { types, passes, unseenExperts } };
}
