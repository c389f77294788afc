/** What `ansatz inspect` does: the device, the kernels that will run and why, memory, and whether a recipe fits. */
import { totalmem } from 'node:os';
import { openDevice } from '../../backend/index.ts';
import { accountFor, availableBytes } from '../../train/account.ts';
import { parseTrainConfig } from '../../train/config.ts';
import { measurePeak } from '../../train/peak.ts';
import { configured, loadRecipe } from '../common.ts';
import { formatBytes, formatCount, formatDuration } from '../term/format.ts';
import type { Output } from '../term/output.ts';
import { pairs } from '../term/table.ts';

export async function runInspect(output: Output, recipe: string | undefined, settings?: string[]): Promise<void> {
  // A recipe that does not hold is refused before the device is measured.
  const config = recipe ? await recipeConfig(recipe, settings) : undefined;
  const device = await describeDevice();
  const plan = config && describePlan(config, device);
  output.result('inspect', { device, recipe: plan }, [
    ...deviceText(output, device),
    ...(plan ? ['', ...planText(output, plan)] : []),
  ]);
}

async function describeDevice() {
  const cpu = openDevice('cpu');
  const info = cpu.info();
  const best = info.levels[info.levels.length - 1];
  const forced = process.env.ANSATZ_ISA;
  const why =
    forced && info.level === forced
      ? 'chosen by ANSATZ_ISA'
      : info.level === best
        ? 'the best that this CPU and this build have'
        : 'a lower level than available';
  return {
    kind: info.kind,
    name: info.name,
    threads: info.threads,
    level: info.level,
    levels: info.levels,
    why,
    kernels: (cpu as unknown as { kernels(): string[] }).kernels().length,
    peak: { bf16: await measurePeak(cpu, 'bf16'), f32: await measurePeak(cpu, 'f32') },
    memory: { total: totalmem(), free: availableBytes() },
  };
}
type DeviceFacts = Awaited<ReturnType<typeof describeDevice>>;

async function recipeConfig(name: string, settings?: readonly string[]) {
  const recipe = await loadRecipe(name);
  const input = await configured(recipe, { data: 'not read', vocab: recipe.vocab }, settings);
  return { name, summary: recipe.summary, config: parseTrainConfig(input) };
}

function describePlan(recipe: Awaited<ReturnType<typeof recipeConfig>>, device: DeviceFacts) {
  const { name, summary, config } = recipe;
  const account = accountFor(config);
  const tokensPerStep = account.positionsPerStep;
  const perSecond = (0.6 * device.peak[config.precision]) / account.modelFlopsPerToken;
  return {
    name,
    summary,
    ...account,
    tokensPerStep,
    tokens: tokensPerStep * config.steps,
    fits: account.memory.total < device.memory.free,
    /** At 60% of the measured rate of matrix products. */
    estimatedTokensPerSecond: perSecond,
    estimatedSeconds: (tokensPerStep * config.steps) / perSecond,
  };
}
type Plan = ReturnType<typeof describePlan>;

const gflops = (x: number): string => `${(x / 1e9).toFixed(0)} GFLOP/s`;

function deviceText(output: Output, d: DeviceFacts): string[] {
  return [
    output.style.bold('device'),
    ...pairs([
      ['cpu', `${d.name}, ${d.threads} threads`],
      ['kernels', `${d.kernels}, for ${d.level}: ${d.why}`],
      ['available', `${d.levels.join(', ')} (ANSATZ_ISA chooses)`],
      ['products', `${gflops(d.peak.bf16)} bf16, ${gflops(d.peak.f32)} f32 (1024 x 1024, measured now)`],
      ['memory', `${formatBytes(d.memory.free)} free of ${formatBytes(d.memory.total)}`],
    ]),
  ];
}

function planText(output: Output, p: Plan): string[] {
  const roles = Object.entries(p.byRole).map(([role, n]) => `${formatCount(n)} ${role}`);
  const m = p.memory;
  return [
    output.style.bold(`recipe ${p.name}`),
    ...pairs([
      ['parameters', `${formatCount(p.parameters)} (${roles.join(', ')})`],
      ['compute', `${formatCount(p.modelFlopsPerToken)} FLOP a token, forward and backward`],
      ['a step', `${formatCount(p.stepFlops)} FLOP in ${p.calls} kernel calls, ${formatCount(p.tokensPerStep)} tokens`],
      ['tokens', `${formatCount(p.tokens)} in all`],
      ['memory', formatBytes(m.total)],
      ['', `${formatBytes(m.parameters)} weights, ${formatBytes(m.optimiser)} optimiser`],
      ['', `${formatBytes(m.arena)} activations and gradients, ${formatBytes(m.other)} other`],
      ['fits', p.fits ? 'yes' : 'no: more memory than is free; lower batch, length or model.depth'],
      [
        'estimate',
        `${formatDuration(p.estimatedSeconds)} at ${formatCount(p.estimatedTokensPerSecond)} tokens/s, 60% of the measured rate`,
      ],
    ]),
  ];
}
