// One or more cases for every row of the op table.
import { Rng } from './kernel-cases/build.ts';
import { attentionCases } from './op-cases-attention.ts';
import { binaryCases } from './op-cases-binary.ts';
import type { OpCase } from './op-cases-build.ts';
import { factoredCases } from './op-cases-factored.ts';
import { linearCases } from './op-cases-linear.ts';
import { lossCases } from './op-cases-loss.ts';
import { optimCases } from './op-cases-optim.ts';
import { randomCases } from './op-cases-random.ts';
import { reduceCases } from './op-cases-reduce.ts';
import { rotaryCases } from './op-cases-rotary.ts';
import { routeCases } from './op-cases-route.ts';
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
  rotary: rotaryCases,
  select: selectCases,
  route: routeCases,
  loss: lossCases,
  random: randomCases,
  optim: optimCases,
  sparsity: sparsityCases,
  factored: factoredCases,
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
  combine_rows_bwd: 'combine_rows',
  grouped_matmul_weight: 'grouped_matmul',
};

/** Rows without a gradient: their outputs end every path. */
export const notDifferentiable: readonly string[] = [
  ...['sign', 'step', 'eq', 'ne', 'lt', 'le', 'gt', 'ge', 'argmax', 'argmin', 'one_hot', 'uniform', 'normal'],
  ...['clip_scale', 'adamw', 'accumulate', 'assign', 'lion', 'momentum', 'apply_update', 'adafactor'],
  ...['route', 'route_choice', 'choice_share', 'nonzero_share', 'track'],
  ...Object.keys(reachedThrough).filter((name) => name !== 'weighted_loss'),
];

/** Rows whose gradients are made in the forward pass and handed on by another row. */
export const gradientElsewhere: Readonly<Record<string, string>> = {
  factored_cross_entropy: 'weighted_loss',
};

export const casesOf = (op: string): OpCase[] => opCases.filter((c) => c.op === op);
