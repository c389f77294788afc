/** What `ansatz prune` does. */
import { type Pattern, pruneModel } from '../../infer/compress/prune.ts';
import type { PruneFlags } from '../commands/prune.ts';
import { type Output, UsageError } from '../term/output.ts';
import { calibrationFor, calibrationMemory, finishChange, lateProgress, openForChange } from './compress.ts';

export async function runPrune(output: Output, path: string, flags: PruneFlags): Promise<void> {
  const { method, damp } = flags;
  if (flags.pattern !== undefined && flags.sparsity !== undefined)
    throw new UsageError('--pattern and --sparsity exclude each other: a pattern has its own share');
  if (method === 'magnitude' && flags.calibrate !== undefined)
    throw new UsageError('--method magnitude looks at the weights alone: --calibrate is for wanda and sparsegpt');
  const pattern = flags.pattern === undefined ? null : patternOf(flags.pattern);
  const sparsity = pattern ? pattern.least / pattern.among : (flags.sparsity ?? 0.5);
  const suffix = pattern ? `${pattern.among - pattern.least}of${pattern.among}` : `pruned${Math.round(100 * sparsity)}`;
  const opened = await openForChange(output, path, suffix, flags);
  const calibration = method === 'magnitude' ? null : calibrationFor(output, opened, flags);
  try {
    const progress = lateProgress(output, 'pruning');
    const { params, report } = await pruneModel(
      opened.loaded,
      {
        method,
        sparsity,
        pattern,
        damp,
        memory: calibrationMemory(),
        onProgress: (done, total) => progress.update(done, total),
      },
      calibration,
    ).finally(() => progress.finish());
    const options = {
      method,
      ...(flags.pattern === undefined ? { sparsity } : { pattern: flags.pattern }),
      ...(calibration ? { calibrate: calibration.tokens } : {}),
      ...(method === 'sparsegpt' ? { damp } : {}),
    };
    const share = ((100 * report.zeros) / report.weights).toFixed(1);
    const lines = [
      `${share}% of the weights of matrices are 0, stored as zeros: bytes and speed stay, until a kernel skips them`,
      ...(report.unseenExperts > 0
        ? [`${report.unseenExperts} experts saw no calibration text: thinned out by size`]
        : []),
    ];
    await finishChange(output, path, opened, { params, by: 'prune', options }, flags, { fields: { ...report }, lines });
  } finally {
    calibration?.dispose();
    opened.data.close();
  }
}

function patternOf(text: string): Pattern {
  const [, kept, among] = (/^(\d+):(\d+)$/.exec(text) ?? []).map(Number);
  if (!(kept > 0 && among > kept && among <= 128))
    throw new UsageError(`--pattern cannot be '${text}'`, { hint: '--pattern 2:4 leaves 2 weights of every 4' });
  return { least: among - kept, among };
}
