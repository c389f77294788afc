/**
 * What a configuration costs, exactly, before anything runs: the training step is recorded on the meta device, so the
 * numbers come from the same op rows and the same memory plan that the real step uses.
 */
import { freemem } from 'node:os';
import type { KernelCall } from '../backend/device.ts';
import { AnsatzError } from '../backend/errors.ts';
import { MetaDevice } from '../backend/meta/device.ts';
import {
  countParams,
  countUsed,
  declared,
  forwardContext,
  initialise,
  isTrainable,
  type ParamTree,
} from '../nn/index.ts';
import { noGrad, scope, sizeOfShape, Tensor, trace } from '../tensor/index.ts';
import type { TrainConfig } from './config.ts';
import { objectiveOf, positionsOf } from './objective.ts';
import { trainedModel } from './session.ts';
import { DeviceBatch, TrainStep } from './step.ts';
import { plannedLoss } from './teacher.ts';

export interface Account {
  readonly parameters: number;
  /** Those that a token uses when it is decoded, k of E experts and a unit a block; all of them, or without embeddings. */
  readonly activeParameters: number;
  readonly activeNonEmbedding: number;
  /** Positions that a step computes, encoder and decoder together, and those that have a target. */
  readonly positionsPerStep: number;
  readonly lossTokensPerStep: number;
  /** Parameters by their role. */
  readonly byRole: Readonly<Record<string, number>>;
  /** FLOPs of matrix products and attention in the forward pass, a token. */
  readonly forwardFlopsPerToken: number;
  /** Three times that: what utilisation counts (Chowdhery et al. 2022, appendix B; causal attention counted once). */
  readonly modelFlopsPerToken: number;
  /** Everything a step dispatches: FLOPs and least bytes moved, all micro-batches and the update. */
  readonly stepFlops: number;
  readonly stepBytes: number;
  readonly calls: number;
  readonly memory: {
    readonly parameters: number;
    readonly optimiser: number;
    /** Activations and gradients, as laid out in the step's arena. */
    readonly arena: number;
    /** Gradient sums of several micro-batches, batches, tables. */
    readonly other: number;
    readonly total: number;
  };
}

const productKernels = new Set([
  ...['quant_matmul', 'quant_grouped_matmul'],
  ...['block_attention', 'lsh_attention'],
  ...['matmul', 'attention', 'linear_cross_entropy', 'conv1d', 'grouped_matmul'],
  ...['block_gate', 'factored_linear', 'factored_cross_entropy', 'module_conv', 'short_conv', 'long_conv'],
]);

/** FLOPs of the kernels that utilisation counts. */
export const productFlops = (calls: readonly KernelCall[]): number =>
  calls.reduce((n, c) => n + (productKernels.has(c.kernel) ? (c.cost?.flops ?? 0) : 0), 0);

/**
 * Accounts for a training configuration. Allocates and computes nothing.
 * @param base parameters of the quantised run that it adapts
 */
export function accountFor(config: TrainConfig, base?: ParamTree): Account {
  const device = new MetaDevice();
  const model = trainedModel(config);
  const length = config.length ?? config.model.context;
  const params = base
    ? { ...withoutValues(base, device), ...initialise({ children: { lora: model.children!.lora } }, device, 0) }
    : initialise(model, device, config.seed);
  const parameterBytes = device.memory().liveBytes;
  const objective = objectiveOf(config, length);
  const tokens = config.batch * positionsOf(objective);

  const forward = scope(() => {
    model.prepare(device);
    const batch = DeviceBatch.forTraining(device, config, length);
    const { calls } = trace(() =>
      noGrad(() => model.loss(params, batch, forwardContext({ device, compute: config.precision })).total),
    );
    batch.dispose();
    return calls;
  });
  const step = new TrainStep(device, model, params, config, length, plannedLoss(config, { device, model }));
  const programs = step.programs;
  const total = (of: (c: KernelCall) => number): number =>
    programs.reduce((n, { program, times }) => n + times * program.calls.reduce((m, c) => m + of(c), 0), 0);

  const byRole: Record<string, number> = {};
  for (const { spec } of declared(model).filter(isTrainable))
    byRole[spec.role] = (byRole[spec.role] ?? 0) + sizeOfShape(spec.shape);
  const optimiser = [...step.optimiser.state.values()].reduce((n, t) => n + t.storage.memory.bytes, 0);
  const arena = programs.reduce((n, { program }) => n + program.arenaBytes, 0);
  const live = device.memory().liveBytes;
  const forwardFlops = productFlops(forward) / tokens;
  return {
    parameters: countParams(model),
    activeParameters: countUsed(declared(model)),
    activeNonEmbedding: countUsed(declared(model).filter(({ spec }) => spec.role !== 'embedding')),
    positionsPerStep: tokens * config.accumulate,
    lossTokensPerStep: config.batch * config.accumulate * objective.shape.targets,
    byRole,
    forwardFlopsPerToken: forwardFlops,
    modelFlopsPerToken: 3 * forwardFlops,
    stepFlops: total((c) => c.cost?.flops ?? 0),
    stepBytes: total((c) => c.cost?.bytes ?? 0),
    calls: programs.reduce((n, { program, times }) => n + times * program.calls.length, 0),
    memory: {
      parameters: parameterBytes,
      optimiser,
      arena,
      other: live - parameterBytes - optimiser,
      total: live + arena,
    },
  };
}

/** A tree of the same shapes and types. */
const withoutValues = (tree: ParamTree, device: MetaDevice): ParamTree =>
  Object.fromEntries(
    Object.entries(tree).map(([name, t]) => [
      name,
      t instanceof Tensor ? Tensor.empty(device, t.dtype, t.shape) : withoutValues(t, device),
    ]),
  );

/** Bytes that this process may still take: the system's, or its container's limit. */
export function availableBytes(): number {
  const limit = process.constrainedMemory?.() ?? 0;
  const free = freemem();
  return limit > 0 && limit < Number.MAX_SAFE_INTEGER
    ? Math.min(free, Math.max(0, limit - process.memoryUsage.rss()))
    : free;
}

/**
 * Refuses a run before anything is allocated, when its plan is larger than the memory there is.
 * @throws AnsatzError with both numbers.
 */
export function refuseWhatDoesNotFit(account: Account, device: string): void {
  if (device !== 'cpu') return;
  const have = availableBytes();
  const { total, parameters, optimiser, arena } = account.memory;
  if (total <= have) return;
  const gib = (n: number): string => `${(n / 2 ** 30).toFixed(2)} GiB`;
  throw new AnsatzError(
    `out of memory by plan: the run needs ${gib(total)} (weights ${gib(parameters)}, optimiser ${gib(optimiser)}, activations and gradients ${gib(arena)}), ${gib(have)} are free`,
    { hint: 'lower batch, length or the model; `ansatz inspect RECIPE --set batch=1` shows what a change saves' },
  );
}
