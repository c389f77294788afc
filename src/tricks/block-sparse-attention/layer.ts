/**
 * Attention with three gated branches (Yuan et al. 2025): compressed blocks, chosen blocks, a window.
 *
 * Shapes: B batch, T tokens, H heads, K key heads, D head width, N compressed blocks, n places on a list.
 */
import { z } from 'zod';
import { AnsatzError } from '../../backend/errors.ts';
import {
  choose,
  type ForwardContext,
  type Mixer,
  type ParamSpec,
  type ParamTree,
  type SlotContext,
  tap,
  tensorOf,
} from '../../nn/index.ts';
import { linear, matrix, vector, writeBranch } from '../../nn/linear.ts';
import {
  attention,
  attentionWithLse,
  blockAttention,
  blockMasks,
  blockSelect,
  compressedPairs,
  gateBranches,
  reshape,
  sigmoid,
  type Tensor,
} from '../../tensor/index.ts';
import { compress, compressParams } from './compress.ts';
import { branchesOfRows } from './rows.ts';

export const blockSparseSchema = z.strictObject({
  heads: z.int().positive(),
  kvHeads: z.int().positive().optional(),
  headWidth: z.int().positive().optional(),
  /** Tokens of a compressed block, and from one to the next: l and d. */
  length: z.int().positive().default(32),
  stride: z.int().positive().default(16),
  /** Units of the layer that compresses a block; by default twice the head width. */
  compressHidden: z.int().positive().optional(),
  /** Tokens of a block that can be chosen, l'; and how many are, n, among them always the first and the last ones. */
  size: z.int().positive().default(64),
  blocks: z.int().positive().default(16),
  initial: z.int().min(0).default(1),
  local: z.int().min(0).default(2),
  window: z.int().positive().default(512),
  /** One projection of keys and values for all branches. */
  share: z.boolean().default(false),
  dropout: z.number().min(0).lt(1).default(0),
});
export type BlockSparseOptions = z.output<typeof blockSparseSchema>;

function check(o: BlockSparseOptions, kvHeads: number, { positions, dims }: SlotContext): void {
  if (o.heads % kvHeads)
    throw new AnsatzError(`block-sparse: ${o.heads} query heads do not share ${kvHeads} key heads evenly`);
  if (o.length % o.stride || o.size % o.stride)
    throw new AnsatzError(`block-sparse: stride ${o.stride} must divide length ${o.length} and size ${o.size}`);
  if (o.initial + o.local > o.blocks)
    throw new AnsatzError(`block-sparse: ${o.initial} initial and ${o.local} local blocks are more than ${o.blocks}`, {
      hint: 'raise attention.blocks, or lower attention.initial and attention.local',
    });
  if (positions.bias)
    throw new AnsatzError('block-sparse: chosen and compressed blocks have no biases by distance', {
      hint: "use positions 'rope', 'xpos', 'learned' or 'none'",
    });
  if (positions.reach !== undefined && dims.context > positions.reach)
    throw new AnsatzError(`block-sparse: a context of ${dims.context} is more than these positions turn at once`, {
      hint: `lower model.context to ${positions.reach}`,
    });
}

type Branch = 'compressed' | 'selected' | 'window';
const branches: readonly Branch[] = ['compressed', 'selected', 'window'];

export function buildBlockSparse(o: BlockSparseOptions, context: SlotContext): Mixer {
  const { dims, positions, scales, headWidth: d, layer } = context;
  const { heads, length, stride, size } = o;
  const kvHeads = o.kvHeads ?? heads;
  check(o, kvHeads, context);
  const scale = scales.attention(d);
  const sizes = { length, stride, headWidth: d, hidden: o.compressHidden ?? 2 * d };
  const keyName = (branch: Branch): string => (o.share ? 'key' : `${branch}Key`);
  const valueName = (branch: Branch): string => (o.share ? 'value' : `${branch}Value`);
  const projections = new Set(branches.flatMap((b) => [keyName(b), valueName(b)]));
  const params: Record<string, ParamSpec> = {
    query: matrix(heads * d, dims.width),
    ...Object.fromEntries([...projections].map((name) => [name, matrix(kvHeads * d, dims.width)])),
    ...compressParams('keyBlock', sizes),
    ...compressParams('valueBlock', sizes),
    gate: matrix(branches.length * heads, dims.width),
    gateBias: vector(branches.length * heads, 0),
    out: matrix(dims.width, heads * d, 1 / Math.sqrt(2 * dims.depth)),
  };

  /** Keys and values of a branch [B,T,K,D], not turned. Shared ones are computed once. */
  const keyValues = (p: ParamTree, x: Tensor, c: ForwardContext): ((branch: Branch) => [Tensor, Tensor]) => {
    const made = new Map<string, Tensor>();
    const project = (name: string): Tensor => {
      const [b, t] = x.shape;
      const y = made.get(name) ?? reshape(linear(x, tensorOf(p, name), c), [b, t, kvHeads, d]);
      made.set(name, y);
      return y;
    };
    return (branch) => [project(keyName(branch)), project(valueName(branch))];
  };

  return {
    params,
    forward: (p, x, residual, c) => {
      if (c.visible || c.keep)
        throw new AnsatzError(
          'block-sparse: blocks are compressed and chosen from the past, other masks have no meaning',
          {
            hint: "use attention 'full' where queries see ahead or keys are dropped",
          },
        );
      const [b, t] = x.shape;
      const { segments } = c;
      const of = keyValues(p, x, c);
      const q = reshape(linear(x, tensorOf(p, 'query'), c), [b, t, heads, d]);

      const turn = (y: Tensor, queries: number, keys: number): Tensor => positions.rotate?.(y, queries, keys, c) ?? y;
      const opened = sigmoid(linear(x, tensorOf(p, 'gate'), c, { bias: tensorOf(p, 'gateBias'), out: 'f32' }));
      const gates = reshape(opened, [b, t, branches.length, heads]);
      tap(c, `blocks.${layer}.attention.gates`, () => gates);
      const write = (read: [Tensor, Tensor, Tensor]): Tensor =>
        writeBranch(reshape(gateBranches(read, gates), [b, t, heads * d]), tensorOf(p, 'out'), residual, c, {
          ...{ bias: null, scale: scales.branch, dropout: o.dropout },
        });

      if (c.rows) {
        const turnKeys = ([k, v]: [Tensor, Tensor]): [Tensor, Tensor] => [turn(k, 0, kvHeads), v];
        const selected = turnKeys(of('selected'));
        const window = o.share ? selected : turnKeys(of('window'));
        const rowSizes = { ...o, ...sizes, kvHeads, scale };
        const all = { q, turned: turn(q, heads, 0), compressed: of('compressed'), selected, window };
        return write(branchesOfRows(p, all, c.rows, rowSizes, c));
      }

      // Compressed: content without positions, since a block has no single one.
      const [key, value] = of('compressed');
      const [kc, vc] = [compress(p, 'keyBlock', key, sizes, c), compress(p, 'valueBlock', value, sizes, c)];
      const masks = blockMasks(q, length, stride, segments);
      const { out: compressed, lse } = attentionWithLse(q, kc, vc, {
        ...{ causal: true, scale, visible: masks.visible, segments, keySegments: masks.segments },
        pairs: compressedPairs(t, length, stride),
      });

      const turned = turn(q, heads, 0);
      const index = choose(c, () =>
        blockSelect(q, kc, lse, {
          ...{ length, stride, size, n: o.blocks, initial: o.initial, local: o.local, scale },
          ...{ segments, blockSegments: masks.segments },
        }),
      );
      const [ks, vs] = of('selected');
      const turnedKeys = turn(ks, 0, kvHeads);
      const selected = blockAttention(turned, turnedKeys, vs, index, { size, scale, segments });

      const [kw, vw] = of('window');
      const near = kw === ks ? turnedKeys : turn(kw, 0, kvHeads);
      const windowed = attention(turned, near, vw, { causal: true, window: o.window, scale, segments });
      return write([compressed, selected, windowed]);
    },
  };
}
