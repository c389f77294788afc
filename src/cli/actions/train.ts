/** What `ansatz train` does: a run folder from a recipe, training with the live view, resuming. */
import { existsSync, readdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { AnsatzError, openDevice } from '../../backend/index.ts';
import { accountFor, refuseWhatDoesNotFit } from '../../train/account.ts';
import { parseTrainConfig, type TrainConfigInput, trainConfigSchema } from '../../train/config.ts';
import { stepsForSeconds } from '../../train/horizon.ts';
import { objectiveOf } from '../../train/objective.ts';
import type { JsonObject } from '../../train/run/canonical.ts';
import { RunFolder } from '../../train/run/folder.ts';
import { writeReport } from '../../train/run/report.ts';
import { openRunData } from '../../train/session.ts';
import { train } from '../../train/trainer.ts';
import type { TrainFlags } from '../commands/train.ts';
import { configured, loadRecipe, type Recipe } from '../common.ts';
import { dataFolder } from '../data.ts';
import { quoted, shortPath, spoken } from '../invocation.ts';
import { LiveView } from '../term/live.ts';
import { type Output, UsageError } from '../term/output.ts';

export async function runTrain(output: Output, name: string, flags: TrainFlags): Promise<void> {
  if (flags.resume) {
    const others = (['data', 'out', 'steps', 'seconds', 'seed', 'set', 'from'] as const).filter(
      (f) => flags[f] !== undefined,
    );
    if (others.length > 0)
      throw new UsageError(
        `--resume goes on with the run's own config and data: leave out ${others.map((f) => `--${f}`).join(', ')}`,
      );
    await trainWithView(output, existingRun(name), { resume: true });
  } else {
    if (flags.steps && flags.seconds) throw new UsageError('--steps and --seconds exclude each other');
    await trainWithView(output, await newRun(output, name, flags), { resume: false });
  }
}

function existingRun(path: string): RunFolder {
  const usual = join('runs', path);
  if (!existsSync(join(path, 'config.json')) && existsSync(join(usual, 'config.json')))
    throw new AnsatzError(`${path}: is not a run folder`, { hint: `ansatz train ${quoted(usual)} --resume` });
  return RunFolder.open(path);
}

async function newRun(output: Output, name: string, flags: TrainFlags): Promise<RunFolder> {
  const recipe = await loadRecipe(name);
  if (!flags.data)
    throw new UsageError('--data is missing: a folder of text or of prepared tokens', {
      hint: `ansatz train ${quoted(name)} --data FOLDER`,
    });
  const label = name.replace(/^.*[\\/]/, '').replace(/\.\w+$/, '');
  const out = flags.out ?? join('runs', label);
  // Reading text takes a while and fills a folder: what cannot succeed is refused before.
  requireVacant(out);
  checkPlan(await configOf(recipe, { folder: 'not read yet', vocab: recipe.vocab }, flags));
  const data = await dataFolder(output, flags.data, `${resolve(out)}-data`, recipe.vocab, flags.seed);
  const config = await configOf(recipe, data, flags);
  if (flags.seconds) config.steps = await stepsForSeconds(parseTrainConfig(config), flags.seconds);
  return createRun(out, config);
}

async function configOf(
  recipe: Recipe,
  { folder, vocab }: { folder: string; vocab: number },
  { steps, seconds, seed, set, from }: TrainFlags,
): Promise<TrainConfigInput> {
  const options = { data: folder, vocab, steps: steps ?? (seconds ? 1 : undefined), seed };
  const config = await configured(recipe, options, set);
  if (from) config.from = RunFolder.open(from).path;
  // Special tokens of an objective come on top of the text's vocabulary.
  const parsed = trainConfigSchema.safeParse(config);
  const own = parsed.success ? objectiveOf(parsed.data).specials.length : 0;
  if (own > 0 && parsed.data) config.model.vocab = Math.max(parsed.data.model.vocab, vocab + own);
  return config;
}

function checkPlan(input: TrainConfigInput) {
  const config = parseTrainConfig(input);
  if (openDevice(config.device).kind === 'meta')
    throw new AnsatzError('the meta device only plans: it has shapes, no values', {
      hint: 'leave device out, or plan with `ansatz inspect RECIPE`',
    });
  refuseWhatDoesNotFit(accountFor(config), config.device);
  return config;
}

/** @throws AnsatzError when something is there that a new run would mix with. */
function requireVacant(out: string): void {
  let entries: string[];
  try {
    entries = readdirSync(out);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return;
    throw new AnsatzError(`${out}: a run cannot be made there (${code})`, { hint: 'name another folder with --out' });
  }
  if (entries.length === 0) return;
  if (isRun(out))
    throw new AnsatzError(`${out}: already holds a run; nothing was changed`, {
      hint: `ansatz train ${quoted(out)} --resume, or name another folder with --out`,
    });
  throw new AnsatzError(`${out}: is not empty and not a run; nothing was written`, {
    hint: 'name a new folder with --out',
  });
}

/** Whether a folder is a run of ours; many tools write a config.json. */
export function isRun(path: string): boolean {
  try {
    RunFolder.open(path);
    return true;
  } catch {
    return false;
  }
}

/** A run folder with the full, checked config; nothing is made when the plan does not fit or the data is damaged. */
export async function createRun(out: string, input: TrainConfigInput): Promise<RunFolder> {
  const config = checkPlan(input);
  openRunData(config).close();
  return RunFolder.create(out, config as unknown as JsonObject);
}

const SAME_KEY_PRESS_MS = 1000;

/** Trains with the live view; Ctrl-C saves and stops. Reports are written at the end. */
export async function trainWithView(output: Output, run: RunFolder, options: { resume: boolean; closing?: boolean }) {
  const stop = new AbortController();
  let asked = 0;
  const interrupt = (): void => {
    // A second Ctrl-C does not wait. One key press can arrive twice: from the terminal, and from npm or npx, which pass
    // on what the terminal has sent to every process already.
    if (stop.signal.aborted && performance.now() - asked > SAME_KEY_PRESS_MS) process.exit(130);
    if (!stop.signal.aborted) asked = performance.now();
    stop.abort();
  };
  process.on('SIGINT', interrupt);
  process.on('SIGTERM', interrupt);
  const view = new LiveView(output, { title: run.name, footer: 'Ctrl-C saves and stops' });
  const path = shortPath(run.path);
  try {
    // The curve of a run that goes on shows where it comes from.
    if (options.resume && output.mode === 'tty') for (const step of (await run.history()).steps) view.state.add(step);
    const summary = await train(run, { resume: options.resume, signal: stop.signal, onEvent: (e) => view.add(e) });
    view.close();
    const report = await writeReport(run);
    if (options.closing !== false) {
      const next = spoken(
        summary.status === 'stopped'
          ? `ansatz train ${quoted(path)} --resume`
          : `ansatz generate ${quoted(path)} --prompt "The "`,
      );
      output.result('train', { run: path, ...summary, report: report.json, next: [next] }, [
        `${summary.status}: ${path} (curves in ${shortPath(report.html)})`,
        `next: ${next}`,
      ]);
    }
    return summary;
  } catch (error) {
    view.close();
    if (error instanceof AnsatzError && !error.hint)
      throw new AnsatzError(error.message, {
        hint: `the run folder ${path} is as it was at its last checkpoint`,
        cause: error,
      });
    throw error;
  } finally {
    process.off('SIGINT', interrupt);
    process.off('SIGTERM', interrupt);
  }
}
