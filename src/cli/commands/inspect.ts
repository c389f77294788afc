/** ansatz inspect: the device, the kernels that will run and why, memory, and whether a recipe fits. */
import { totalmem } from 'node:os';
import { Command } from 'commander';
import { openDevice } from '../../backend/index.ts';
import { accountFor, availableBytes } from '../../train/account.ts';
import { parseTrainConfig } from '../../train/config.ts';
import { measurePeak } from '../../train/peak.ts';
import { action, applySettings, loadRecipe, type OutputFlags } from '../common.ts';
import { formatBytes, formatCount } from '../term/format.ts';
import type { Output } from '../term/output.ts';
import { pairs } from '../term/table.ts';

interface Flags extends OutputFlags {
  set: string[];
}

export function inspectCommand(): Command {
  const command = new Command('inspect')
    .description('Show the device and its kernels; with a recipe, what it costs and whether it fits.')
    .argument('[recipe]', 'a recipe, or the path of one')
    .option(
      '--set <field=value>',
      'change a field of the recipe; repeatable',
      (v: string, all: string[]) => [...all, v],
      [],
    )
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz inspect\n  ansatz inspect tiny\n  ansatz inspect gpt2-124m --set batch=1 --json',
    );
  return action(command, async (output, recipe: string | undefined, flags: Flags) => {
    const device = await describeDevice();
    const plan = recipe ? await describeRecipe(recipe, flags.set, device) : undefined;
    output.result('inspect', { device, recipe: plan }, [
      ...deviceText(output, device),
      ...(plan ? ['', ...planText(output, plan)] : []),
    ]);
  });
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

async function describeRecipe(name: string, settings: readonly string[], device: DeviceFacts) {
  const recipe = await loadRecipe(name);
  const input = recipe.config({ data: 'none', vocab: recipe.vocab });
  applySettings(input, settings);
  const config = parseTrainConfig(input);
  const account = accountFor(config);
  const tokensPerStep = config.batch * config.accumulate * (config.length ?? config.model.context);
  const perSecond = (0.6 * device.peak[config.precision]) / account.modelFlopsPerToken;
  return {
    name,
    summary: recipe.summary,
    ...account,
    tokensPerStep,
    tokens: tokensPerStep * config.steps,
    fits: account.memory.total < device.memory.free,
    /** At 60% of the measured rate of matrix products. */
    estimatedTokensPerSecond: perSecond,
    estimatedSeconds: (tokensPerStep * config.steps) / perSecond,
  };
}
type Plan = Awaited<ReturnType<typeof describeRecipe>>;

const gflops = (x: number): string => `${(x / 1e9).toFixed(0)} GFLOP/s`;

function deviceText(output: Output, d: DeviceFacts): string[] {
  return [
    output.style.bold('device'),
    ...pairs([
      ['cpu', `${d.name}, ${d.threads} threads`],
      ['kernels', `${d.kernels}, compiled for ${d.level} (${d.why}; available: ${d.levels.join(', ')})`],
      ['matrix products', `${gflops(d.peak.bf16)} bf16, ${gflops(d.peak.f32)} f32 (1024 x 1024, measured now)`],
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
      [
        'compute',
        `${formatCount(p.modelFlopsPerToken)} FLOP a token in training, ${formatCount(p.stepFlops)} a step in ${p.calls} kernel calls`,
      ],
      ['tokens', `${formatCount(p.tokensPerStep)} a step, ${formatCount(p.tokens)} in all`],
      [
        'memory',
        `${formatBytes(m.total)}: weights ${formatBytes(m.parameters)}, optimiser ${formatBytes(m.optimiser)}, activations and gradients ${formatBytes(m.arena)}, other ${formatBytes(m.other)}`,
      ],
      ['fits', p.fits ? 'yes' : 'no: more memory than is free; lower batch, length or model.depth'],
      [
        'estimate',
        `${formatCount(p.estimatedTokensPerSecond)} tokens/s, ${formatCount(p.estimatedSeconds / 60)} minutes (at 60% of the measured rate)`,
      ],
    ]),
  ];
}
