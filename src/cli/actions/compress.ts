/** What `ansatz quantize`, `prune` and `distill` share: opening a run, comparing before and after, saying what came of it. */
import { AnsatzError } from '../../backend/errors.ts';
import { compare, type Measured, type Subject } from '../../infer/compress/measure.ts';
import { type MadeRun, saveMade } from '../../infer/compress/save.ts';
import { type Calibration, calibrationOf } from '../../infer/compress/stages.ts';
import { freePlace } from '../../infer/formats/place.ts';
import { flatten } from '../../nn/index.ts';
import { isBlock } from '../../tensor/index.ts';
import { availableBytes } from '../../train/account.ts';
import { parseTrainConfig } from '../../train/config.ts';
import type { Checkpoint } from '../../train/run/checkpoint.ts';
import { RunFolder } from '../../train/run/folder.ts';
import { type LoadedModel, loadModel, openRunData, type RunData } from '../../train/session.ts';
import type { CompressFlags } from '../commands/compress.ts';
import { quoted, shortPath, spoken } from '../invocation.ts';
import { formatBytes } from '../term/format.ts';
import type { Output } from '../term/output.ts';
import type { Progress } from '../term/progress.ts';
import { table } from '../term/table.ts';
import { chooseCheckpoint, runTokenizer } from './generate.ts';

const CALIBRATION_TOKENS = 32768;

/** Bytes that statistics of matrices may take at a time. */
export const calibrationMemory = (): number => Math.min(2 ** 31, availableBytes() / 4);

export interface Opened {
  readonly run: RunFolder;
  readonly checkpoint: Checkpoint;
  readonly loaded: LoadedModel;
  readonly data: RunData;
  readonly out: string;
}

/** The run, its data, and the place for the new one; nothing that cannot succeed gets further. */
export async function openForChange(
  output: Output,
  path: string,
  suffix: string,
  flags: CompressFlags,
): Promise<Opened> {
  const run = RunFolder.open(path);
  const out = freePlace(flags.out ?? `${run.path}-${suffix}`, 'folder');
  const checkpoint = await chooseCheckpoint(output, run, path, flags);
  const stored = parseTrainConfig(run.config);
  const config = flags.data ? { ...stored, data: { ...stored.data, folder: flags.data } } : stored;
  const data = openRunData(config);
  try {
    const loaded = await loadModel(config, checkpoint);
    const quantised = flatten(loaded.params).find(({ tensor: { dtype } }) => isBlock(dtype) || dtype === 'u8');
    if (quantised)
      throw new AnsatzError(
        `${path}: is quantised already (${quantised.path} is ${quantised.tensor.dtype === 'u8' ? 'records' : quantised.tensor.dtype})`,
        {
          hint: stored.madeFrom
            ? `take the run it was made from: ${stored.madeFrom.run}`
            : 'take the run it was made from',
        },
      );
    return { run, checkpoint, loaded, data, out };
  } catch (error) {
    data.close();
    throw error;
  }
}

/** Text of the run to calibrate with; reading it is shown. */
export function calibrationFor(output: Output, { loaded, data }: Opened, flags: CompressFlags): Calibration {
  const inner = calibrationOf(loaded, data, flags.calibrate ?? CALIBRATION_TOKENS);
  return {
    ...inner,
    *batches() {
      const progress = output.progress({ label: 'calibrating', total: inner.tokens, unit: 'tokens', quiet: true });
      try {
        for (const batch of inner.batches()) {
          yield batch;
          progress.add(batch.inputs.length);
        }
      } finally {
        progress.finish();
      }
    },
  };
}

/** A bar that is there once something is done: while a calibration runs, that is what is shown. */
export function lateProgress(
  output: Output,
  label: string,
): { update(done: number, total: number): void; finish(): void } {
  let bar: Progress | undefined;
  return {
    update(done, total) {
      bar ??= output.progress({ label, total, unit: 'matrices', quiet: true });
      bar.update(done);
      // Another stage may calibrate before it goes on.
      if (done === total) bar.finish();
    },
    finish: () => bar?.finish(),
  };
}

/** Measures both, writes the run, and reports. */
export async function finishChange(
  output: Output,
  path: string,
  { run, checkpoint, loaded, data, out }: Opened,
  made: Pick<MadeRun, 'params' | 'turned' | 'by' | 'options'>,
  flags: CompressFlags,
  more: { fields: Record<string, unknown>; lines: readonly string[] },
): Promise<void> {
  const tokenizer = runTokenizer(run, loaded.config.data.folder, checkpoint);
  const [before, after] = await compareWithProgress(
    output,
    [
      { loaded, data },
      { loaded: { ...loaded, params: made.params }, data },
    ],
    flags,
  );
  const config = parseTrainConfig(run.config);
  const { baselines } = data;
  await saveMade({ out, source: run, checkpoint, config, tokenizer, baselines, before, after, ...made });
  const next = spoken(`ansatz generate ${quoted(shortPath(out))} --prompt "The "`);
  const fields = {
    run: path,
    step: checkpoint.step,
    out,
    ...made.options,
    ...more.fields,
    before,
    after,
    next: [next],
  };
  output.result(made.by, fields, [
    ...comparison([shortPath(run.path), shortPath(out)], before, after),
    ...more.lines,
    `next: ${next}`,
  ]);
}

export async function compareWithProgress(
  output: Output,
  subjects: readonly [Subject, Subject],
  flags: Pick<CompressFlags, 'maxTokens' | 'seconds'>,
): Promise<[before: Measured, after: Measured]> {
  const progress = output.progress({ label: 'comparing', unit: 'steps', quiet: true });
  const onProgress = (): void => progress.add(1);
  try {
    return await compare(subjects, { maxTokens: flags.maxTokens, seconds: flags.seconds, onProgress });
  } finally {
    progress.finish();
  }
}

/** Both beside each other. */
export function comparison(names: readonly [string, string], before: Measured, after: Measured): string[] {
  const percent = (a: number, b: number): string => `${b >= a ? '+' : ''}${((b / a - 1) * 100).toFixed(2)}%`;
  const rate = (x: number | null): string => (x === null ? '-' : x.toFixed(1));
  const [a, b] = [before, after];
  const right = { align: 'right' as const };
  return table(
    [{ title: '' }, { title: names[0], ...right }, { title: names[1], ...right }, { title: '', ...right }],
    [
      ['held-out loss', a.loss.toFixed(4), b.loss.toFixed(4), percent(a.loss, b.loss)],
      ['bits per byte', a.bitsPerByte.toFixed(4), b.bitsPerByte.toFixed(4), percent(a.bitsPerByte, b.bitsPerByte)],
      ['weights', formatBytes(a.bytes), formatBytes(b.bytes), percent(a.bytes, b.bytes)],
      [
        'tokens/s, one text',
        rate(a.tokensPerSecond),
        rate(b.tokensPerSecond),
        a.tokensPerSecond && b.tokensPerSecond ? percent(a.tokensPerSecond, b.tokensPerSecond) : '',
      ],
    ],
  );
}
