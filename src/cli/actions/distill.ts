/** What `ansatz distill` does. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Tokenizer } from '../../data/tokenizer/index.ts';
import { freePlace } from '../../infer/formats/place.ts';
import { disposeTree } from '../../nn/index.ts';
import { parseTrainConfig, type TrainConfigInput } from '../../train/config.ts';
import { stepsForSeconds } from '../../train/horizon.ts';
import { latestCheckpoint } from '../../train/run/checkpoint.ts';
import { RunFolder } from '../../train/run/folder.ts';
import { loadModel, openRunData } from '../../train/session.ts';
import { sameTokens } from '../../train/teacher.ts';
import type { DistillFlags } from '../commands/distill.ts';
import { applySettings, configured, loadRecipe } from '../common.ts';
import { isPrepared, prepareWithProgress } from '../data.ts';
import { quoted, shortPath, spoken } from '../invocation.ts';
import { type Output, UsageError } from '../term/output.ts';
import { compareWithProgress, comparison } from './compress.ts';
import { chooseCheckpoint } from './generate.ts';
import { createRun, trainWithView } from './train.ts';

export async function runDistill(
  output: Output,
  path: string,
  recipe: string | undefined,
  flags: DistillFlags,
): Promise<void> {
  if (recipe !== undefined && flags.config !== undefined)
    throw new UsageError('a recipe and --config exclude each other: both are the student');
  if (flags.steps && flags.seconds) throw new UsageError('--steps and --seconds exclude each other');
  const teacher = RunFolder.open(path);
  const out = freePlace(flags.out ?? `${teacher.path}-student`, 'folder');
  const checkpoint = await chooseCheckpoint(output, teacher, path, {});
  const own = parseTrainConfig(teacher.config);
  const folder = await dataFor(output, flags.data ?? own.data.folder, out, teacher.path);
  const config = await studentConfig(recipe ?? flags.config, { teacher, folder }, flags);
  if (flags.seconds) config.steps = await stepsForSeconds(parseTrainConfig(config), flags.seconds);
  const text = openRunData(parseTrainConfig(config));
  text.close();
  sameTokens(text.tokenizer, teacher.path);
  const run = await createRun(out, config);
  const summary = await trainWithView(output, run, { resume: false, closing: false });
  const shown = shortPath(run.path);
  if (summary.status !== 'completed') {
    const next = spoken(`ansatz train ${quoted(shown)} --resume`);
    const { status } = summary;
    output.result('distill', { teacher: path, out, status, step: summary.step, next: [next] }, [
      `${status}: ${shown}`,
      `next: ${next}`,
    ]);
    return;
  }

  const made = parseTrainConfig(run.config);
  const taught = { ...own, data: { ...own.data, folder } };
  const models = [await loadModel(taught, checkpoint), await loadModel(made, (await latestCheckpoint(run))!)] as const;
  const data = [openRunData(taught), openRunData(made)] as const;
  try {
    const pairs = [
      { loaded: models[0], data: data[0] },
      { loaded: models[1], data: data[1] },
    ] as const;
    const [before, after] = await compareWithProgress(output, pairs, {
      maxTokens: flags.maxTokens,
      seconds: flags.measure,
    });
    const next = spoken(`ansatz generate ${quoted(shown)} --prompt "The "`);
    const { lambda, temperature, start } = flags;
    const fields = { teacher: path, out, step: summary.step, lambda, temperature, start, before, after, next: [next] };
    output.result('distill', fields, [...comparison([shortPath(teacher.path), shown], before, after), `next: ${next}`]);
  } finally {
    for (const d of data) d.close();
    for (const m of models) disposeTree(m.params);
  }
}

/** Prepared data: as it is, or made of text with the teacher's tokenizer. */
async function dataFor(output: Output, data: string, out: string, teacher: string): Promise<string> {
  if (isPrepared(data) || !existsSync(data)) return data;
  const folder = `${out}-data`;
  const tokenizer = Tokenizer.fromFile(join(teacher, 'tokenizer.json'));
  await prepareWithProgress(output, { paths: [data], folder, vocab: 0, tokenizer });
  return folder;
}

async function studentConfig(
  student: string | undefined,
  { teacher, folder }: { teacher: RunFolder; folder: string },
  { steps, seconds, seed, set = [], lambda, temperature, start }: DistillFlags,
): Promise<TrainConfigInput> {
  const own = parseTrainConfig(teacher.config);
  const wanted = steps ?? (seconds ? 1 : undefined);
  let config: TrainConfigInput;
  if (student === undefined) {
    const { from: _, madeFrom: __, distil: ___, ...rest } = own;
    config = structuredClone({
      ...rest,
      name: `${own.name}-student`,
      steps: wanted ?? own.steps,
      seed: seed ?? own.seed,
    });
    config.data.folder = folder;
    applySettings(config, set);
  } else {
    const { vocab } = own.model;
    const options = { data: folder, vocab, steps: wanted, seed };
    const recipe = await loadRecipe(student);
    config = await configured(recipe, options, set);
    // A recipe that says nothing of its rows gets those that the teacher knows.
    const says = recipe.config(options).objective !== undefined || set.some((s) => s.startsWith('objective'));
    if (!says) config.objective = own.objective;
  }
  config.distil = { teacher: teacher.path, lambda, temperature, start };
  return config;
}
