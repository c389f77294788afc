/** The teacher of a run: another run's newest weights, checked to fit what the student reads. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { AnsatzError } from '../backend/errors.ts';
import type { Device } from '../backend/index.ts';
import { Tokenizer } from '../data/tokenizer/index.ts';
import { buildModel, layoutTraits, type Model } from '../model/model.ts';
import { hasGeneralMasks, initialise } from '../nn/index.ts';
import { parseTrainConfig, type TrainConfig } from './config.ts';
import { distillation, type LossOf, type Teacher } from './distil.ts';
import { objectiveOf, rowLength } from './objective.ts';
import { latestCheckpoint } from './run/checkpoint.ts';
import { RunFolder } from './run/folder.ts';
import { loadModel } from './session.ts';

/** The teacher's config, when it can read the student's rows. */
function teacherConfig(config: TrainConfig, path: string): TrainConfig {
  const teacher = parseTrainConfig(RunFolder.open(path).config);
  const reads = (c: TrainConfig): boolean => layoutTraits(c.model).encoder === true;
  if (reads(config) !== reads(teacher)) {
    const kind = (c: TrainConfig): string => (reads(c) ? 'an encoder' : 'no encoder');
    throw new AnsatzError(`the teacher has ${kind(teacher)}, the student ${kind(config)}: they read different rows`, {
      hint: 'give the student a layout of the same sort (model.layout)',
    });
  }
  const length = rowLength(config);
  if (teacher.model.context < length)
    throw new AnsatzError(`the teacher's context is ${teacher.model.context}, rows have ${length} tokens`, {
      hint: `set length or model.context to ${teacher.model.context} or less`,
    });
  const { shape } = objectiveOf(config);
  const { attention, overrides } = teacher.model;
  const narrow = [attention, ...overrides.flatMap((o) => o.attention ?? [])].find((a) => !hasGeneralMasks(a));
  if ((shape.visible || shape.keep) && narrow)
    throw new AnsatzError(
      `the teacher's attention '${narrow.kind}' is causal by construction, objective ${config.objective.kind} is not`,
      { hint: "use the teacher's own objective" },
    );
  return teacher;
}

/** @throws AnsatzError when an id means one thing to the student and another to its teacher. */
export function sameTokens(student: Tokenizer, path: string): void {
  const file = join(path, 'tokenizer.json');
  if (!existsSync(file)) throw new AnsatzError(`${path}: has no tokenizer.json to compare with the student's`);
  const teacher = Tokenizer.fromFile(file);
  const hint = "train on the teacher's data: leave --data out";
  const pieces = (t: Tokenizer): number => t.vocabSize - t.specialIds.size;
  if (pieces(student) !== pieces(teacher))
    throw new AnsatzError(
      `${path}: has another tokenizer than the student: ${pieces(teacher)} tokens of text, the student has ${pieces(student)}`,
      { hint },
    );
  for (let id = 0; id < student.vocabSize; id++)
    if (id >= teacher.vocabSize || student.idToToken(id) !== teacher.idToToken(id))
      throw new AnsatzError(`${path}: has another tokenizer than the student: token ${id} means something else there`, {
        hint,
      });
}

/** The teacher of a run that has one, on the run's device. */
export async function openTeacher(config: TrainConfig): Promise<Teacher | undefined> {
  const { distil } = config;
  if (!distil) return undefined;
  const own = teacherConfig(config, distil.teacher);
  const checkpoint = await latestCheckpoint(RunFolder.open(distil.teacher));
  if (!checkpoint) throw new AnsatzError(`${distil.teacher}: has no checkpoint to teach from`);
  return loadModel({ ...own, device: config.device }, checkpoint);
}

/** What a run with a teacher minimises; undefined for runs without. */
export function taughtLoss(
  config: TrainConfig,
  { device, model }: { device: Device; model: Model },
  teacher: Teacher | undefined,
  tokenizer: Tokenizer,
): LossOf | undefined {
  if (!config.distil || !teacher) return undefined;
  const { teacher: path, lambda, temperature } = config.distil;
  sameTokens(tokenizer, RunFolder.open(path).path);
  return distillation(device, model, teacher, { lambda, temperature, shared: tokenizer.vocabSize });
}

/** The same without values: for accounting. */
export function plannedLoss(
  config: TrainConfig,
  { device, model }: { device: Device; model: Model },
): LossOf | undefined {
  const { distil } = config;
  if (!distil) return undefined;
  const own = teacherConfig(config, distil.teacher);
  const teacher = buildModel(own.model);
  const { lambda, temperature } = distil;
  const shared = Math.min(own.model.vocab, config.model.vocab);
  return distillation(
    device,
    model,
    { model: teacher, params: initialise(teacher, device, 0) },
    { lambda, temperature, shared },
  );
}

/**
 * Which parameter of a deeper model of the same widths starts the one at `path` off: blocks are taken at even distances,
 * the first and the last among them (DistilBERT took every other one).
 */
export function sparserLayers(paths: readonly string[], theirs: readonly string[]): (path: string) => string {
  const [own, other] = [blocksOf(paths), blocksOf(theirs)];
  return (path) => {
    const [whole, stack, k] = /^(.*?\bblocks)\.(\d+)\./.exec(path) ?? [];
    if (whole === undefined) return path;
    const [to, from] = [own.get(stack) ?? 1, other.get(stack) ?? 1];
    const source = to === 1 ? from - 1 : Math.round((Number(k) * (from - 1)) / (to - 1));
    return `${stack}.${source}.${path.slice(whole.length)}`;
  };
}

/** Number of blocks of every stack. */
function blocksOf(paths: readonly string[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const path of paths) {
    const [, stack, k] = /^(.*?\bblocks)\.(\d+)\./.exec(path) ?? [];
    if (stack !== undefined) counts.set(stack, Math.max(counts.get(stack) ?? 0, Number(k) + 1));
  }
  return counts;
}
