/** What `ansatz lab first-look` does: sample, tokens, speeds, plan, trainings with progress, the verdict files. */
import { existsSync } from 'node:fs';
import { cpus } from 'node:os';
import { basename } from 'node:path';
import { AnsatzError, openDevice } from '../../backend/index.ts';
import { readBaselines } from '../../data/prepare.ts';
import { readManifest } from '../../data/shards.ts';
import type { ExtraArm } from '../../lab/first-look/arms.ts';
import { BASE_RATE, type BaseSize, baseConfig, sizeOf, USUAL_WIDTH } from '../../lab/first-look/base.ts';
import { type Source, sampleCorpora, sourceName } from '../../lab/first-look/corpus.ts';
import { type Settings, SweepFolder } from '../../lab/first-look/folder.ts';
import type { Machine } from '../../lab/first-look/report.ts';
import { sweep } from '../../lab/first-look/sweep.ts';
import type { TrainConfigInput } from '../../train/config.ts';
import { type FirstLookFlags, USUAL_OUT, USUAL_RUN } from '../commands/first-look.ts';
import { loadRecipe } from '../common.ts';
import { prepareWithProgress } from '../data.ts';
import { quoted } from '../invocation.ts';
import type { Output } from '../term/output.ts';
import { markdownOf, writeVerdict } from './first-look-verdict.ts';
import { SweepView } from './first-look-view.ts';

const VOCAB = 4096;

export async function runFirstLook(output: Output, texts: readonly string[], flags: FirstLookFlags): Promise<void> {
  const began = performance.now();
  for (const text of texts) if (!existsSync(text)) throw new AnsatzError(`${text}: does not exist`);
  openDevice('cpu'); // what cannot train is said before text is read
  const out = markdownOf(flags.out ?? USUAL_OUT);
  const folder = new SweepFolder(flags.run);
  const settings: Settings = {
    texts: texts.map(sourceName),
    bytes: flags.cap * 1e6,
    vocab: VOCAB,
    size: sizeOf(flags.width),
    minutes: flags.minutes,
    seeds: flags.seeds,
    workers: flags.workers,
    ...(flags.only ? { only: flags.only } : {}),
  };
  const lock = folder.claim(settings);
  try {
    await compare(output, texts, { ...flags, out }, { folder, settings, began });
  } finally {
    lock.release();
  }
}

interface Comparison {
  readonly folder: SweepFolder;
  readonly settings: Settings;
  readonly began: number;
}

async function compare(
  output: Output,
  texts: readonly string[],
  flags: FirstLookFlags & { out: string },
  { folder, settings, began }: Comparison,
): Promise<void> {
  const sources = folder.plan()?.sources ?? (await prepared(output, folder, texts, settings));
  const { vocabSize: vocab } = readManifest(folder.data, 'train');
  const extra = [await presetArm(settings.size, { folder: folder.data, vocab })];
  const stop = new AbortController();
  const interrupt = (): void => stop.abort();
  process.on('SIGINT', interrupt).on('SIGTERM', interrupt);
  const view = new SweepView(output);
  try {
    const input = { folder, settings, sources, vocab, extra, began, signal: stop.signal };
    const result = await sweep(input, {
      onArms: (arms) => view.arms(arms),
      onSpeed: (arm, speed, failed) => view.speed(arm, speed?.ratio, failed),
      onPlan: (plan, arms, missing) => view.plan(plan, arms, missing),
      onSteps: (run, steps) => view.steps(run, steps),
      onDone: ({ run, result: r, failed }) => view.done(run, r?.bitsPerByte, r?.seconds, failed),
    });
    view.close();
    const found = {
      ...result,
      machine: machineOf(),
      // Names, not places: the file is read elsewhere.
      command: `ansatz lab first-look ${texts.map((t) => quoted(basename(t))).join(' ')}${changed({ ...flags, out: undefined, run: USUAL_RUN })}`,
      date: result.plan.started.slice(0, 10),
      compressors: readBaselines(folder.data),
    };
    writeVerdict(output, found, flags.out, flags.run);
  } catch (error) {
    view.close();
    if (!stop.signal.aborted || !(error instanceof AnsatzError)) throw error;
    const again = `ansatz lab first-look ${texts.map(quoted).join(' ')}${changed(flags)}`;
    throw new AnsatzError(error.message, { hint: again, cause: error });
  } finally {
    process.off('SIGINT', interrupt).off('SIGTERM', interrupt);
  }
}

/** Options that differ from the defaults, as they were typed. */
function changed({ out, run, minutes, seeds, only, cap, width, workers }: FirstLookFlags): string {
  const words: [string, string | undefined][] = [
    ['--out', out === undefined || out === USUAL_OUT ? undefined : quoted(out)],
    ['--run', run === USUAL_RUN ? undefined : quoted(run)],
    ...[['--minutes', String(minutes)] as [string, string], ['--seeds', String(seeds)] as [string, string]],
    ['--only', only?.join(',')],
    ['--cap', cap === 16 ? undefined : String(cap)],
    ['--width', width === USUAL_WIDTH ? undefined : String(width)],
    ['--workers', String(workers)],
  ];
  return words.map(([flag, value]) => (value === undefined ? '' : ` ${flag} ${value}`)).join('');
}

/** The sample in tokens. */
async function prepared(
  output: Output,
  folder: SweepFolder,
  texts: readonly string[],
  { bytes, vocab }: Settings,
): Promise<Source[]> {
  const { sources, files } = await sampleCorpora(texts, folder.sample, bytes);
  await prepareWithProgress(output, { paths: files, folder: folder.data, vocab, corpus: { capBytes: 2 * bytes } });
  return sources;
}

/** The recipe `ansatz` at the base's width, depth and rows; its units are fitted like every arm's. */
async function presetArm(size: BaseSize, data: { folder: string; vocab: number }): Promise<ExtraArm> {
  const recipe = await loadRecipe('ansatz');
  const own = recipe.config({ data: data.folder, vocab: data.vocab });
  const base = baseConfig(size, data);
  const { width, depth, heads, length } = size;
  const half = Math.max(1, Math.floor(depth / 2));
  const slot = (value: unknown, change: object): object =>
    typeof value === 'object' && value !== null ? { ...value, ...change } : { kind: value, ...change };
  const model = own.model as TrainConfigInput['model'] & { layout: { encoderAttention?: object } };
  // Blocks as `sparse-ffn` itself takes them for few units: 32 of them would leave nothing to fit.
  const small = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(small);
    if (typeof value !== 'object' || value === null) return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, k === 'block' ? 8 : small(v)]));
  };
  const fitted = {
    ...model,
    ffn: small(model.ffn),
    overrides: small(model.overrides ?? []),
    context: length,
    width,
    depth: Math.max(1, depth - half),
    layout: slot(model.layout, {
      encoderDepth: half,
      encoderAttention: slot(model.layout.encoderAttention ?? 'full', { heads }),
    }),
    attention: slot(model.attention, { heads }),
    parametrisation: slot(model.parametrisation, { baseWidth: width }),
  };
  const objective = slot(own.objective, { budget: Math.floor(length / 2) });
  const input = { ...base, model: fitted, objective, optimiser: { kind: 'adamw', lr: BASE_RATE } } as TrainConfigInput;
  return { name: 'ansatz', summary: recipe.summary, input };
}

function machineOf(): Machine {
  const { level } = openDevice('cpu').info();
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown CPU',
    cores: cpus().length,
    level: level ?? 'unknown level',
    node: process.versions.node,
    platform: `${process.platform} ${process.arch}`,
  };
}
