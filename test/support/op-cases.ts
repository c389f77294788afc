// One or more cases for every row of the op table.
import { Rng } from './kernel-cases/build.ts';
import { attentionCases } from './op-cases-attention.ts';
import { binaryCases } from './op-cases-binary.ts';
import { blockAttentionCases } from './op-cases-block-attention.ts';
import type { OpCase } from './op-cases-build.ts';
import { drawOpCases } from './op-cases-draw.ts';
import { factoredCases } from './op-cases-factored.ts';
import { linearCases } from './op-cases-linear.ts';
import { longConvCases } from './op-cases-long-conv.ts';
import { lossCases } from './op-cases-loss.ts';
import { lshCases } from './op-cases-lsh.ts';
import { obsCases } from './op-cases-obs.ts';
import { optimCases } from './op-cases-optim.ts';
import { pagedCases } from './op-cases-paged.ts';
import { pagedKindCases } from './op-cases-paged-kinds.ts';
import { quantCases } from './op-cases-quant.ts';
import { quantRowCases } from './op-cases-quant-rows.ts';
import { randomCases } from './op-cases-random.ts';
import { reduceCases } from './op-cases-reduce.ts';
import { rotaryCases } from './op-cases-rotary.ts';
import { routeCases } from './op-cases-route.ts';
import { scanCases } from './op-cases-scan.ts';
import { selectCases } from './op-cases-select.ts';
import { shapeCases } from './op-cases-shape.ts';
import { sparsityCases } from './op-cases-sparsity.ts';
import { unaryCases } from './op-cases-unary.ts';

export type { CaseInput, Nd, OpCase } from './op-cases-build.ts';

const families = {
  unary: unaryCases,
  binary: binaryCases,
  shape: shapeCases,
  reduce: reduceCases,
  linear: linearCases,
  attention: attentionCases,
  block_attention: blockAttentionCases,
  rotary: rotaryCases,
  select: selectCases,
  route: routeCases,
  loss: lossCases,
  random: randomCases,
  obs: obsCases,
  draw: drawOpCases,
  optim: optimCases,
  sparsity: sparsityCases,
  factored: factoredCases,
  longConv: longConvCases,
  scan: scanCases,
  lsh: lshCases,
  paged: pagedCases,
  paged_kinds: pagedKindCases,
  quant: quantCases,
  'quant-rows': quantRowCases,
};

/** Every case, in a fixed order and with fixed values. */
export const opCases: readonly OpCase[] = Object.entries(families).flatMap(([name, make]) => make(new Rng(name)));

/** Rows of the table that no public function applies by itself: the row whose cases (and gradients) run them. */
export const reachedThrough: Readonly<Record<string, string>> = {
  gelu_bwd: 'gelu',
  gelu_erf_bwd: 'gelu_erf',
  silu_bwd: 'silu',
  relu_bwd: 'relu',
  relu2_bwd: 'relu2',
  softplus_bwd: 'softplus',
  tanh_bwd: 'tanh',
  sigmoid_bwd: 'sigmoid',
  glu_bwd: 'glu',
  softmax_bwd: 'softmax',
  log_softmax_bwd: 'log_softmax',
  rms_norm_bwd: 'rms_norm',
  layer_norm_bwd: 'layer_norm',
  attention_bwd: 'attention',
  block_attention_bwd: 'block_attention',
  gate_branches_bwd: 'gate_branches',
  embedding_bwd: 'embedding',
  cross_entropy_bwd: 'cross_entropy',
  conv1d_bwd_x: 'conv1d',
  conv1d_bwd_w: 'conv1d',
  weighted_loss: 'linear_cross_entropy',
  block_gate_bwd: 'block_gate',
  stat_topk_bwd: 'stat_topk',
  abs_sum_bwd: 'abs_sum',
  factored_linear_bwd: 'factored_linear',
  module_conv_bwd_w: 'module_conv',
  long_conv_bwd: 'long_conv',
  short_conv_bwd: 'short_conv',
  combine_rows_bwd: 'combine_rows',
  grouped_matmul_weight: 'grouped_matmul',
  sru_bwd: 'sru',
  lsh_attention_bwd: 'lsh_attention',
};

/** Rows without a gradient: their outputs end every path. */
export const notDifferentiable: readonly string[] = [
  ...['block_masks', 'block_select'],
  ...['sign', 'step', 'eq', 'ne', 'lt', 'le', 'gt', 'ge', 'argmax', 'argmin', 'one_hot', 'uniform', 'normal'],
  ...['clip_scale', 'adamw', 'accumulate', 'assign', 'lion', 'momentum', 'apply_update', 'adafactor'],
  ...['paged_append', 'paged_attention', 'merge_attention', 'paged_write', 'paged_read', 'paged_choose', 'paged_conv'],
  ...['paged_block_rows', 'paged_block_gather', 'paged_block_write', 'paged_block_choose', 'paged_block_attention'],
  ...['paged_lsh_write', 'paged_lsh_attention'],
  ...['route', 'route_choice', 'choice_share', 'nonzero_share', 'track', 'join_segments'],
  ...['lsh_hash', 'lsh_sort'],
  ...['quantise', 'dequantise', 'quant_matmul', 'quant_grouped_matmul', 'quant_embedding'],
  ...['quant_factored', 'quant_module_conv'],
  ...['pack_units', 'sparse_units', 'unit_choice'],
  ...['inverse_factor', 'obs_round', 'distil_loss', 'draw_rows'],
  ...Object.keys(reachedThrough).filter((name) => name !== 'weighted_loss'),
];

/** Rows whose gradients are made in the forward pass and handed on by another row. */
export const gradientElsewhere: Readonly<Record<string, string>> = {
  factored_cross_entropy: 'weighted_loss',
};

export const casesOf = (op: string): OpCase[] => opCases.filter((c) => c.op === op);
