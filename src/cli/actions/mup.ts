/** What `ansatz mup check` and `ansatz mup transfer` do. */
import { writeFileSync } from 'node:fs';
import { AnsatzError } from '../../backend/errors.ts';
import { parseTrainConfig, type TrainConfig, type TrainConfigInput } from '../../train/config.ts';
import { type CoordinateResult, coordinates, defaultBand, judge, type Verdict } from '../../train/coordinates.ts';
import { rateSweep, type SweepCurve } from '../../train/rate-sweep.ts';
import { atDepth, atWidth } from '../../train/resize.ts';
import type { CheckFlags, MupFlags, TransferFlags } from '../commands/mup.ts';
import { applySettings, configured, loadRecipe } from '../common.ts';
import { formatCount } from '../term/format.ts';
import type { Output } from '../term/output.ts';
import { table } from '../term/table.ts';
import { panels } from './mup-svg.ts';

/**
 * Grouped queries, gated units, untied output: every role, and small enough for seconds. Few tokens a batch: with many,
 * what Adam's normalised gradients say about single tokens drowns in noise that only large widths average out.
 */
const base: TrainConfigInput = {
  model: {
    vocab: 256,
    context: 48,
    width: 128,
    depth: 2,
    attention: { kind: 'full', heads: 4, kvHeads: 2 },
    ffn: { kind: 'glu', hidden: 320 },
    norm: { kind: 'rms', scale: false },
    tied: false,
  },
  data: { folder: 'none', crossDocuments: true },
  precision: 'f32',
  batch: 2,
  steps: 100,
  optimiser: { kind: 'adamw', lr: 3e-3, eps: 1e-12 },
  schedule: { kind: 'constant' },
};

/** Enough tokens a step to learn a made-up language from. */
const learnable: TrainConfigInput = {
  ...base,
  batch: 16,
  model: {
    ...base.model,
    vocab: 64,
    width: 64,
    attention: { kind: 'full', heads: 2, kvHeads: 1 },
    ffn: { kind: 'glu', hidden: 160 },
  },
};

/** Over depth: embeddings as large as what the blocks add. */
const deepBase: TrainConfigInput = {
  ...base,
  model: {
    ...base.model,
    embeddingStd: 1,
  },
};

interface Sized {
  readonly unit: 'width' | 'depth';
  readonly sizes: { size: number; config: TrainConfig }[];
}

async function sized(
  recipe: string | undefined,
  flags: MupFlags,
  small: TrainConfigInput,
  defaults: readonly number[],
): Promise<Sized> {
  let input: TrainConfigInput = structuredClone(flags.depths ? deepBase : small);
  if (recipe) {
    const loaded = await loadRecipe(recipe);
    input = await configured(loaded, { data: 'none', vocab: loaded.vocab });
  }
  const { width, depth, parametrisation } = parseTrainConfig(input).model;
  const unit = flags.depths ? 'depth' : 'width';
  const sizes = flags.depths ?? flags.widths ?? defaults.map((k) => k * width);
  // A recipe without a parametrisation is looked at as it would be with one.
  if (parametrisation.kind === 'standard') {
    const first = Math.min(...sizes);
    input.model = {
      ...(parseTrainConfig(input).model as TrainConfigInput['model']),
      parametrisation: {
        kind: 'mup',
        baseWidth: unit === 'width' ? first : width,
        ...(flags.depths ? { baseDepth: recipe ? depth : 2 } : {}),
        zeroOutput: true,
      },
    };
  }
  applySettings(input, flags.set);
  const config = parseTrainConfig(input);
  if (flags.depths) return { unit, sizes: sizes.map((size) => ({ size, config: atDepth(config, size) })) };
  const growth = { grow: flags.grow, fields: (flags.growField ?? []).map((f) => f.replace(/^model\./, '')) };
  return { unit, sizes: sizes.map((size) => ({ size, config: atWidth(config, size, growth) })) };
}

const signed = (x: number): string => `${x < 0 ? '-' : '+'}${Math.abs(x).toFixed(2)}`;

/** Draws into a file if asked; says where. */
function draw(output: Output, file: string | undefined, svg: () => string): void {
  if (!file) return;
  try {
    writeFileSync(file, svg());
  } catch (cause) {
    throw new AnsatzError(`${file} cannot be written: ${(cause as Error).message}`, {
      hint: 'name another --svg',
      cause,
    });
  }
  output.say(output.style.dim(`drawn into ${file}`));
}

export async function runCheck(output: Output, recipe: string | undefined, flags: CheckFlags): Promise<void> {
  const { unit, sizes } = await sized(recipe, flags, base, [1, 2, 4]);
  const lr = flags.lr ?? sizes[0].config.optimiser.lr;
  const configs = sizes.map(({ size, config }) => ({
    size,
    config: parseTrainConfig({
      ...config,
      optimiser: { ...config.optimiser, lr },
      schedule: { kind: 'constant' },
      precision: 'f32',
    }),
  }));
  // Few blocks are not yet as many are.
  const wider = unit === 'depth' ? { limit: 0.2, noisy: 0.3 } : {};
  const from = Math.min(defaultBand.from, flags.steps);
  const band = { ...defaultBand, ...wider, from, fadingScores: flags.grow === 'headWidth' };
  const progress = output.progress({
    label: 'training',
    total: configs.length * flags.seeds,
    unit: 'runs',
    quiet: true,
  });
  const result = await coordinates({
    sizes: configs,
    seeds: flags.seeds,
    steps: flags.steps,
    onProgress: (done) => progress.update(done),
  }).finally(() => progress.finish());
  const verdicts = judge(result, band);
  const ok = verdicts.every((v) => v.ok);
  const about = { unit, sizes: result.sizes, lr, seeds: flags.seeds, steps: flags.steps, band };
  output.result(
    'mup check',
    { ok, ...about, verdicts, losses: result.losses, coordinates: result.coordinates },
    checkText(output, result, verdicts, unit),
  );
  draw(output, flags.svg, () => checkSvg(result, unit));
  if (ok) return;
  const bad = verdicts.filter((v) => !v.ok).map((v) => v.name);
  throw new AnsatzError(`${bad.length} of ${verdicts.length} activations change with ${unit}: ${bad.join(', ')}`, {
    hint: 'look at the role of the parameters that make them (docs/spec.md, parametrisation)',
  });
}

function checkText(output: Output, r: CoordinateResult, verdicts: readonly Verdict[], unit: string): string[] {
  const last = r.losses[0].length;
  const rows = verdicts.map((v) => {
    const at = r.coordinates.find((c) => c.name === v.name && c.step === last)!;
    const range = at.change.map((x) => x.toPrecision(2)).join(' ');
    const mark = v.ok ? output.style.green('ok') : output.style.red('out of band');
    const shared = v.shared === undefined ? '' : Number.isNaN(v.shared) ? 'none' : signed(v.shared);
    return [v.name, signed(v.level), signed(v.change), shared, `+-${v.limit.toFixed(2)}`, mark, range];
  });
  return [
    `slopes of log2 mean |x| on log2 ${unit} (${r.sizes.join(', ')}), worst from step ${Math.min(defaultBand.from, last)} on`,
    '',
    ...table(
      [
        { title: 'activation' },
        { title: 'size', align: 'right' },
        { title: 'change', align: 'right' },
        { title: 'shared', align: 'right' },
        { title: 'band', align: 'right' },
        { title: '' },
        { title: `change after ${last} steps` },
      ],
      rows,
    ),
    '',
    `loss after ${last} steps: ${r.losses.map((l) => l[last - 1].toFixed(3)).join(' ')}`,
  ];
}

const log2Points = (sizes: readonly number[], y: readonly number[]) =>
  sizes.map((s, k) => ({ x: Math.log2(s), y: y[k] > 0 ? Math.log2(y[k]) : Number.NaN }));

function checkSvg(r: CoordinateResult, unit: string): string {
  const names = [...new Set(r.coordinates.map((c) => c.name))];
  return panels(
    `log2 of the mean change of activations against log2 ${unit}, a line a step`,
    names.map((name) => ({
      title: name,
      lines: r.coordinates
        .filter((c) => c.name === name && c.step > 0)
        .map((c) => ({ points: log2Points(r.sizes, c.change), label: `step ${c.step}` })),
    })),
  );
}

export async function runTransfer(output: Output, recipe: string | undefined, flags: TransferFlags): Promise<void> {
  const { unit, sizes } = await sized(recipe, flags, learnable, [1, 2, 4]);
  const configs = sizes.map(({ size, config }) => ({
    size,
    config: parseTrainConfig({
      ...config,
      steps: flags.steps,
      schedule: recipe ? config.schedule : { kind: 'cosine', warmup: 0.1, floor: 0 },
      ...(flags.data ? { data: { ...config.data, folder: flags.data } } : {}),
    }),
  }));
  const centre = configs[0].config.optimiser.lr;
  const rates = [...(flags.rates ?? [-3, -2, -1, 0, 1, 2, 3].map((k) => centre * 2 ** k))].sort((a, b) => a - b);
  const total = configs.length * rates.length * flags.seeds;
  const progress = output.progress({ label: 'training', total, unit: 'runs', quiet: true });
  const curves = await rateSweep({
    sizes: configs,
    rates,
    seeds: flags.seeds,
    onData: flags.data !== undefined,
    onProgress: (done) => progress.update(done),
  }).finally(() => progress.finish());
  const moved = curves.map((c) => c.best - curves[0].best);
  const inside = curves.every((c) => c.inside);
  const ok = inside && moved.every((m) => Math.abs(m) <= flags.limit);
  // What a size pays for the rate that is best for the first one.
  const first = curves[0].losses.indexOf(Math.min(...curves[0].losses));
  const lost = curves.map((c) => c.losses[first] - Math.min(...c.losses));
  const about = { unit, rates, seeds: flags.seeds, steps: flags.steps, limit: flags.limit };
  const all = curves.map((c, k) => ({ ...c, moved: moved[k], lost: lost[k] }));
  output.result('mup transfer', { ok, ...about, curves: all }, sweepText(all, rates, unit, flags.seeds));
  draw(output, flags.svg, () => sweepSvg(curves, rates, unit));
  if (!inside)
    throw new AnsatzError('the best rate lies at the end of the range for one size at least', {
      hint: 'widen --rates',
    });
  if (!ok)
    throw new AnsatzError(
      `the best rate moves by ${Math.max(...moved.map(Math.abs)).toFixed(2)} octaves with ${unit}`,
      {
        hint: `more --seeds or --steps make it surer; --limit ${flags.limit} is what was allowed`,
      },
    );
}

function sweepText(
  curves: readonly (SweepCurve & { moved: number; lost: number })[],
  rates: readonly number[],
  unit: string,
  seeds: number,
): string[] {
  const right = { align: 'right' as const };
  const lossOf = (x: number): string => (Number.isFinite(x) ? x.toFixed(3) : 'diverged');
  return [
    ...table(
      [
        { title: unit, ...right },
        ...rates.map((r) => ({ title: r.toPrecision(2), ...right })),
        { title: 'best rate', ...right },
        { title: 'octaves moved', ...right },
        { title: 'lost', ...right },
        ...(seeds > 1 ? [{ title: '2 sd of seeds', ...right }] : []),
      ],
      curves.map((c) => [
        formatCount(c.size),
        ...c.losses.map(lossOf),
        (2 ** c.best).toPrecision(2),
        signed(c.moved),
        lossOf(c.lost),
        ...(seeds > 1 ? [lossOf(2 * c.spread[c.losses.indexOf(Math.min(...c.losses))])] : []),
      ]),
    ),
    '',
    `lost: how far the loss at the rate that is best for ${unit} ${formatCount(curves[0].size)} lies above the lowest`,
  ];
}

const sweepSvg = (curves: readonly SweepCurve[], rates: readonly number[], unit: string): string =>
  panels(`final loss against log2 of the learning rate, a line a ${unit}`, [
    {
      title: 'final loss',
      lines: curves.map((c) => ({
        points: rates.map((r, k) => ({ x: Math.log2(r), y: c.losses[k] })),
        label: `${unit} ${c.size}`,
      })),
    },
  ]);
