/** The part that a layer and an expert share: controller, choice, masked activations, usage. */
import { choose, type ForwardContext, type ParamTree, repeats, tensorOf } from '../../nn/index.ts';
import {
  affine,
  blockGate,
  cast,
  choiceShare,
  clamp,
  fill,
  lt,
  noGrad,
  type Tensor,
  track,
  uniform,
} from '../../tensor/index.ts';
import type { SparseFfnOptions } from './options.ts';

/** Probability of the hard mask now, f32 [1]: q, rising to 1 over the last `anneal` of the run. */
function hardShare({ hard: q, anneal }: SparseFfnOptions, c: ForwardContext): Tensor {
  if (anneal === 0 || !c.progress) return fill(c.device, [1], q);
  const slope = (1 - q) / anneal;
  return clamp(affine(c.progress, slope, q - slope * (1 - anneal)), q, 1);
}

/** f32 [1], 1 where this pass masks hard: one draw for the whole pass. Null: always. */
export function hardFlag(o: SparseFfnOptions, c: ForwardContext): Tensor | null {
  const { random } = c;
  if (!c.training || !random || o.hard === 1) return null;
  return noGrad(() => lt(uniform(random, [1], c.nextStream()), hardShare(o, c)));
}

/**
 * relu(h) masked by the controller. h [rows, F] units before the ReLU, t f32 [rows, r] what `low` makes of the same rows;
 * with offsets, rows are grouped and each group has a controller. Outside training: exact, without noise.
 */
export function maskedUnits(
  o: SparseFfnOptions,
  p: ParamTree,
  h: Tensor,
  t: Tensor,
  c: ForwardContext,
  offsets: Tensor | null = null,
): Tensor {
  // In the order of the first pass, which draws before it chooses.
  const [hard, stream] = [hardFlag(o, c), c.nextStream()];
  const before = recalled(o, c);
  const { out, choice } = blockGate(h, t, tensorOf(p, 'logits'), {
    block: o.block,
    bias: o.controllerBias ? tensorOf(p, 'logitsBias') : null,
    offsets,
    hard,
    random: c.training ? c.random : null,
    tau: o.tau,
    stream,
    mask: o.mask,
    multiply: o.multiply,
    recalled: before,
  });
  if (before) return out;
  keep(o, choice, c);
  if (c.training && o.usageDecay > 0) track(tensorOf(p, 'usage'), choiceShare(choice, o.block, offsets), o.usageDecay);
  return out;
}

/** Bytes hold the choices of all but the largest blocks. */
const small = (o: SparseFfnOptions): boolean => o.block <= 256;

/** Notes the chosen units [rows, F/N] for a second pass, if there may be one. */
function keep(o: SparseFfnOptions, choice: Tensor, c: ForwardContext): void {
  if (c.choices) choose(c, () => noGrad(() => (small(o) ? cast(choice, 'u8') : choice)));
}

/** The units that the first pass chose; null in a first pass. */
function recalled(o: SparseFfnOptions, c: ForwardContext): Tensor | null {
  if (!repeats(c)) return null;
  const kept = choose<Tensor>(c, () => {
    throw new Error('a second pass repeats what the first chose');
  });
  return small(o) ? cast(kept, 'i32') : kept;
}
