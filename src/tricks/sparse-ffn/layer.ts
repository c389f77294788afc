/**
 * The layer: relu(x W1^T) with one unit of each block alive, times W2. In training all units are computed and masked;
 * for decoding a unit's two rows lie together, and only those of the chosen units are read (sections 3.1 and 4 of
 * Jaszczur et al. 2021).
 */
import type { ForwardContext, Mixer, ParamSpec, ParamTree, SlotContext } from '../../nn/index.ts';
import { evenForRows, tensorOf } from '../../nn/index.ts';
import { linear, vector, writeBranch } from '../../nn/linear.ts';
import {
  affine,
  type BlockType,
  cast,
  matmul,
  packLogits,
  packUnits,
  reshape,
  scope,
  sparseUnits,
  type Tensor,
  type UnitType,
  unitChoice,
} from '../../tensor/index.ts';
import { maskedUnits } from './gate.ts';
import { usageMonitor } from './monitor.ts';
import { type SparseFfnOptions, sparseParams } from './options.ts';

const unitTypes: Readonly<Record<BlockType, UnitType>> = { q8: 'q8', q4: 'q4', bf16x16: 'bf16', f32x16: 'f32' };

const unitsName = (type: UnitType): string => `units_${type}`;
const unpacked = (p: ParamTree): boolean => 'up' in p;

export function buildSparseFfn(o: SparseFfnOptions, { dims, scales, layer }: SlotContext): Mixer {
  const { width, depth } = dims;
  const biasOf = (p: ParamTree, name: string): Tensor | null => (o.bias ? tensorOf(p, name) : null);

  // Beside weights in 8 bits and fewer the controller's are bf16: it would be most of what a token reads.
  const controllerFor = (p: ParamTree, type: BlockType): Record<string, Tensor> => {
    const dtype = type === 'q8' || type === 'q4' ? 'bf16' : 'f32';
    const [low, logits] = [tensorOf(p, 'low'), tensorOf(p, 'logits')];
    return scope(() => ({
      ...(dtype === 'bf16' ? { low: cast(low, dtype).keep() } : {}),
      ...(o.block % 16 === 0 ? { logits: packLogits(logits, dtype).keep() } : {}),
    }));
  };

  const masked = (p: ParamTree, x: Tensor, residual: Tensor, c: ForwardContext): Tensor => {
    const flat = reshape(x, [-1, width]);
    const h = linear(flat, tensorOf(p, 'up'), c, { bias: biasOf(p, 'upBias') });
    // The controller runs in f32: a rounded logit is another choice. In blocks, a row does not see how many there are.
    const low = evenForRows(c.rows, tensorOf(p, 'low'));
    const t = matmul(flat, low, { transB: true, compute: 'f32', out: 'f32' });
    const a = maskedUnits(o, p, h, t, c);
    return writeBranch(reshape(a, [...x.shape.slice(0, -1), o.hidden]), tensorOf(p, 'down'), residual, c, {
      bias: biasOf(p, 'downBias'),
      scale: scales.branch,
      dropout: o.dropout,
    });
  };

  const chosen = (p: ParamTree, x: Tensor, residual: Tensor, c: ForwardContext): Tensor => {
    const type = Object.values(unitTypes).find((t) => unitsName(t) in p)!;
    const records = tensorOf(p, unitsName(type));
    const outBias = biasOf(p, 'downBias');
    const bias = o.controllerBias ? tensorOf(p, 'logitsBias') : null;
    const choice = unitChoice(x, tensorOf(p, 'low'), tensorOf(p, 'logits'), { block: o.block, bias });
    c.taps?.set(`blocks.${layer}.ffn.choice`, choice);
    const { y, touched } = sparseUnits(x, choice, records, {
      ...{ type, block: o.block, bias: biasOf(p, 'upBias'), addend: residual, out: 'f32' },
      ...{
        alpha: scales.branch,
        outBias: outBias && scales.branch !== 1 ? affine(outBias, scales.branch, 0) : outBias,
      },
    });
    c.taps?.set(`blocks.${layer}.ffn.touched`, touched);
    return y;
  };

  return {
    params: {
      ...sparseParams(o, { width, depth }, [width, o.hidden]),
      ...(o.bias ? { upBias: vector(o.hidden, 0), downBias: vector(width, 0) } : {}),
    } as Record<string, ParamSpec>,
    ...(o.usageDecay > 0 ? { monitor: usageMonitor(o.block) } : {}),
    forward: (p, x, residual, c) => (unpacked(p) ? masked(p, x, residual, c) : chosen(p, x, residual, c)),
    forDecoding: (p, type) => {
      // Probabilities as factors of units need all logits of a block. What is packed already stays so.
      if (o.multiply || !unpacked(p)) return null;
      const { up, down, ...rest } = p as Record<string, Tensor>;
      return {
        ...rest,
        ...controllerFor(p, type),
        [unitsName(unitTypes[type])]: packUnits(up, down, { type: unitTypes[type], columns: true }).keep(),
      };
    },
  };
}
