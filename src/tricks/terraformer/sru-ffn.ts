/**
 * A feed-forward layer with a narrow recurrent unit beside it (Jaszczur et al. 2021: "recurrence for generalisation"):
 *
 *     FF(x) + Dense_d(SRU_n(Dense_n(x)))
 */
import { z } from 'zod';
import {
  buildSlot,
  childOf,
  type ParamSpec,
  type RowPass,
  registerSlot,
  slotSchema,
  tensorOf,
} from '../../nn/index.ts';
import { linear, matrix, vector, writeBranch } from '../../nn/linear.ts';
import { pagedRead, pagedWrite, reshape, sru, type Tensor } from '../../tensor/index.ts';

/** Trained parameters of the recurrent branch, and FLOPs of its products for a token in the forward pass. */
export const sruCosts = (width: number, n: number): { parameters: number; flops: number } => ({
  parameters: 2 * n * width + 3 * n * n + 3 * n,
  flops: 4 * n * width + 6 * n * n,
});

/**
 * Rows [1, R, n] of any sequences: those of one stand together, in order, and the first goes on from the state that its
 * sequence's pages hold.
 */
function byRows(x: Tensor, gates: Tensor, rows: RowPass): Tensor {
  const [, R, n] = x.shape;
  const pool = rows.vectors(n);
  const { sequence } = rows.index;
  const initial = reshape(pagedRead(pool, rows.index, 1), [1, R, n]);
  const { out, state } = sru(x, gates, { segments: reshape(sequence, [1, R]), initial });
  pagedWrite(pool, reshape(state, [R, n]), rows.index);
  return out;
}

registerSlot({
  slot: 'ffn',
  kind: 'sru-ffn',
  summary: 'a feed-forward layer with a narrow simple recurrent unit beside it',
  options: z.strictObject({
    /** The feed-forward layer that it stands beside. */
    inner: slotSchema('ffn'),
    /** Units of the recurrence, n. */
    units: z.int().positive().default(32),
    /** On what the recurrence adds; the inner layer has its own. */
    dropout: z.number().min(0).lt(1).default(0),
  }),
  build: (o, context) => {
    const { dims, scales } = context;
    const { width, depth } = dims;
    const n = o.units;
    const inner = buildSlot('ffn', o.inner, context);
    const up = matrix(width, n, 1 / Math.sqrt(2 * depth));
    return {
      params: {
        // n does not grow with the width: to rates and initialisation these are an output, two constants and an input. The
        // output may start at zero: then so does what the recurrence adds, whose random part would fall with the width.
        down: { ...matrix(n, width), role: 'output', mayStartAtZero: true },
        gates: { ...matrix(3 * n, n), role: 'constant' },
        gatesBias: { ...vector(3 * n, 0), role: 'constant' },
        up: { ...up, role: 'embedding' },
      } as Record<string, ParamSpec>,
      children: { inner },
      forward: (p, x, residual, c) => {
        const low = linear(x, tensorOf(p, 'down'), c);
        const gates = linear(low, tensorOf(p, 'gates'), c, { bias: tensorOf(p, 'gatesBias') });
        const out = c.rows ? byRows(low, gates, c.rows) : sru(low, gates, { segments: c.segments }).out;
        const branch = { bias: null, scale: scales.branch, dropout: o.dropout };
        const base = writeBranch(out, tensorOf(p, 'up'), residual, c, branch);
        return inner.forward(childOf(p, 'inner'), x, base, c);
      },
    };
  },
});
