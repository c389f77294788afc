/**
 * A matrix in fewer bits by GPTQ (Frantar et al. 2022): columns are rounded one after another, and those that are still
 * free make up for the errors, as far as the inputs that the model was calibrated on go.
 */
import { AnsatzError } from '../../backend/errors.ts';
import { inverseFactor, mul, obsRound, quantise, reshape, scope, slice, Tensor } from '../../tensor/index.ts';

export interface GptqOptions {
  /** Share of the mean of the Gram matrix's diagonal that is added to it. */
  readonly damp: number;
  /** Groups of columns with the strongest inputs first, and so within a group: what is rounded late takes all errors. */
  readonly order: boolean;
}

const GROUP = 32;

/** The diagonal of a matrix [K, K]. */
export function diagonal(h: Tensor): Float32Array {
  const k = h.shape[0];
  return scope(() => slice(reshape(h, [k * k]), 0, 0, k * k, k + 1).dataSync() as Float32Array);
}

/** Columns by falling strength, the 32 of a group together. */
export function columnOrder(strength: ArrayLike<number>): Int32Array {
  const groups = Array.from({ length: Math.ceil(strength.length / GROUP) }, (_, g) => {
    const first = g * GROUP;
    const columns = Array.from({ length: Math.min(GROUP, strength.length - first) }, (_, k) => first + k);
    const mean = columns.reduce((s, c) => s + strength[c], 0) / columns.length;
    return { columns: columns.sort((a, b) => strength[b] - strength[a] || a - b), mean, first };
  });
  return Int32Array.from(groups.sort((a, b) => b.mean - a.mean || a.first - b.first).flatMap((g) => g.columns));
}

/** U of a Gram matrix, for obsRound(). */
export function factorOf(h: Tensor, damp: number, order: Tensor | null): Tensor {
  const u = inverseFactor(h, damp, order);
  if (Number.isNaN(slice(reshape(u, [u.size]), 0, 0, 1).item()))
    throw new AnsatzError('the activations of the calibration text are not finite, or its Gram matrix is singular', {
      hint: 'raise --damp, or use --method rtn',
    });
  return u;
}

/**
 * Weights [N, K] in blocks; null when no input was ever active. Weights that are 0 stay so.
 * @param h the inputs' Gram matrix [K, K]
 * @param clear whether weights of inputs that never were active become 0: scales of groups need not cover them then
 */
export function gptq(w: Tensor, h: Tensor, type: 'q8' | 'q4', o: GptqOptions, clear: boolean): Tensor | null {
  return scope(() => {
    const strength = diagonal(h);
    const [k, dead] = [strength.length, strength.filter((x) => x === 0).length];
    if (dead === k) return null;
    const order = o.order ? Tensor.from(w.device, columnOrder(strength), [k], 'i32') : null;
    const alive = clear && dead > 0 ? Tensor.from(w.device, strength.map(Math.sign), [k]) : null;
    const u = factorOf(h, o.damp, order);
    const rounded = obsRound(alive ? mul(w, alive) : w, u, { to: type, keepZeros: true }, order);
    return quantise(rounded.w, type, rounded.scales);
  });
}

/** Matrix e of a stack [E, .., ..], without a copy. */
export const matrixOf = (stack: Tensor, e: number): Tensor => {
  const shape = stack.shape.slice(1);
  return new Tensor(stack.storage, stack.dtype, shape, stack.offset + e * shape[0] * shape[1]);
};

/**
 * Each of E matrices [E, N, K] by its own Gram matrix [E, K, K]. Those that saw nothing are rounded to nearest; few rows
 * reach a single expert, so that an input it never had active is not taken to be dead.
 */
export function gptqExperts(
  w: Tensor,
  h: Tensor,
  type: 'q8' | 'q4',
  o: GptqOptions,
): { weights: Tensor; unseen: number } {
  const weights = Tensor.empty(w.device, type, w.shape);
  const { memory } = weights.storage;
  const bytes = memory.elements / w.shape[0];
  let unseen = 0;
  for (let e = 0; e < w.shape[0]; e++)
    scope(() => {
      const own = gptq(matrixOf(w, e), matrixOf(h, e), type, o, false);
      if (!own) unseen++;
      w.device.write(memory, e * bytes, (own ?? quantise(matrixOf(w, e), type)).bitsSync());
    });
  return { weights, unseen };
}
