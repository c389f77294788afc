/**
 * A model with weights taken out of its matrices: by size, by size times the strength of the input (Wanda, Sun et al.
 * 2023), or one column after another with the others making up for it (SparseGPT, Frantar and Alistarh 2023). Embeddings
 * and output matrices are left whole, as in those papers. What is taken out is stored as zeros.
 */
import { buildTree, declared, flatten, type ParamTree } from '../../nn/index.ts';
import { noGrad, obsRound, permute, scope, Tensor } from '../../tensor/index.ts';
import type { LoadedModel } from '../../train/session.ts';
import { diagonal, factorOf, matrixOf } from './gptq.ts';
import { type Calibration, eachCalibrated } from './stages.ts';
import { inRows, type Target, targetsOf } from './targets.ts';

/** Take out `least` of every `among` consecutive weights of a row. */
export interface Pattern {
  readonly least: number;
  readonly among: number;
}

export type PruneMethod = 'magnitude' | 'wanda' | 'sparsegpt';

export interface PruneOptions {
  readonly method: PruneMethod;
  /** Share of weights to take out; with a pattern, the pattern's. */
  readonly sparsity: number;
  readonly pattern: Pattern | null;
  readonly damp: number;
  /** As in QuantizeOptions. */
  readonly memory: number;
  readonly onProgress?: (done: number, total: number) => void;
}

export interface PruneReport {
  /** Weights of the matrices that were thinned out, and how many of them are 0 now. */
  readonly weights: number;
  readonly zeros: number;
  /** Passes over the calibration text. */
  readonly passes: number;
  /** Experts that no row of it was routed to: thinned out by size. */
  readonly unseenExperts: number;
}

/** The model's parameters, thinned out; those that stay as they are, are the same tensors. */
export async function pruneModel(
  loaded: LoadedModel,
  o: PruneOptions,
  calibration: Calibration | null,
): Promise<{ params: ParamTree; report: PruneReport }> {
  const now = new Map(flatten(loaded.params).map(({ path, tensor }) => [path, tensor]));
  const tree = (): ParamTree => buildTree(declared(loaded.model), ({ path }) => now.get(path)!);
  const targets = targetsOf(loaded.model, loaded.params).filter((t) => !t.edge && !t.shared);
  let [weights, zeros, done, unseenExperts, passes] = [0, 0, 0, 0, 0];
  /** Takes the values with outputs in rows. */
  const put = (t: Target, values: Float32Array): void => {
    weights += values.length;
    for (let k = 0; k < values.length; k++) zeros += +(values[k] === 0);
    now.set(t.path, scope(() => fromRows(t, values)).parameter());
    o.onProgress?.(++done, targets.length);
  };
  const bySize = (w: Tensor): Thinned => ({ values: thinned(valuesOf(w), w, null, o), unseen: 0 });
  if (o.method === 'magnitude') for (const t of targets) put(t, noGrad(() => scope(() => bySize(inRows(t)))).values);
  else {
    if (!calibration) throw new Error(`${o.method} without calibration`);
    const sums = { statistic: o.method === 'wanda' ? 'squares' : 'gram', memory: o.memory } as const;
    const one = o.method === 'wanda' ? wanda : sparseGpt;
    passes = await eachCalibrated(loaded, targets, sums, calibration, tree, (t, sum) => {
      const { values, unseen } = scope(() => (sum ? one(inRows(t), sum, o) : bySize(inRows(t))));
      unseenExperts += unseen;
      put(t, values);
    });
  }
  return { params: tree(), report: { weights, zeros, passes, unseenExperts } };
}

/** A parameter from values with outputs in rows. */
function fromRows({ use, weight }: Target, values: Float32Array): Tensor {
  const { device, shape } = weight;
  if (use !== 'columns') return Tensor.from(device, values, shape);
  return noGrad(() => permute(Tensor.from(device, values, [shape[0], shape[2], shape[1]]), [0, 2, 1]));
}

type Thinned = { values: Float32Array; unseen: number };

const valuesOf = (t: Tensor): Float32Array => Float32Array.from(t.dataSync());

/** By |w| |x|, |x| being the length of the input's column over the calibration text. */
function wanda(w: Tensor, squares: Tensor, o: PruneOptions): Thinned {
  const norms = Float32Array.from(squares.dataSync(), Math.sqrt);
  return { values: thinned(valuesOf(w), w, norms, o), unseen: 0 };
}

function sparseGpt(w: Tensor, gram: Tensor, o: PruneOptions): Thinned {
  if (w.rank === 2) return { values: sparseGptMatrix(w, gram, o), unseen: 0 };
  const values = new Float32Array(w.size);
  const each = w.size / w.shape[0];
  let unseen = 0;
  for (let e = 0; e < w.shape[0]; e++) {
    const [own, h] = [matrixOf(w, e), matrixOf(gram, e)];
    const seen = diagonal(h).some((x) => x > 0);
    if (!seen) unseen++;
    values.set(seen ? sparseGptMatrix(own, h, o) : thinned(valuesOf(own), own, null, o), e * each);
  }
  return { values, unseen };
}

const sparseGptMatrix = (w: Tensor, h: Tensor, o: PruneOptions): Float32Array =>
  scope(() => {
    const u = factorOf(h, o.damp, null);
    return valuesOf(obsRound(w, u, o.pattern ? { pattern: o.pattern } : { sparsity: o.sparsity }).w);
  });

/**
 * Puts 0 where |w| times the input's norm is least: of every row, of every few consecutive weights of it with a pattern,
 * or without norms of the whole matrix.
 */
export function thinned(
  values: Float32Array,
  { shape }: Pick<Tensor, 'shape'>,
  norms: Float32Array | null,
  { sparsity, pattern }: Pick<PruneOptions, 'sparsity' | 'pattern'>,
): Float32Array {
  const k = shape[shape.length - 1];
  const matrix = shape[shape.length - 2] * k;
  const score = values.map((x, at) => Math.abs(x) * (norms ? norms[Math.floor(at / matrix) * k + (at % k)] : 1));
  // Runs of a pattern end with the row; the last one may be short, as if zeros followed.
  const row = pattern || norms ? k : matrix;
  const run = pattern?.among ?? row;
  for (let first = 0; first < values.length; first += row)
    for (let from = first; from < first + row; from += run) {
      const to = Math.min(first + row, from + run);
      const count = pattern ? Math.max(0, to - from - (pattern.among - pattern.least)) : Math.round(sparsity * row);
      clearLeast(values.subarray(from, to), score.subarray(from, to), count);
    }
  return values;
}

/** Puts 0 in the places of the `count` least scores, ties to the first. */
function clearLeast(values: Float32Array, score: Float32Array, count: number): void {
  if (count === 0) return;
  const limit = score.slice().sort()[count - 1];
  let left = count;
  score.forEach((x, k) => {
    if (x >= limit) return;
    values[k] = 0;
    left--;
  });
  for (let k = 0; left > 0; k++)
    if (score[k] === limit) {
      values[k] = 0;
      left--;
    }
}
