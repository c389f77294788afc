/** What `ansatz quantize` does. */
import { type Bits, quantizeModel } from '../../infer/compress/quantize.ts';
import type { QuantizeFlags } from '../commands/quantize.ts';
import { formatCount } from '../term/format.ts';
import { type Output, UsageError } from '../term/output.ts';
import { calibrationFor, calibrationMemory, finishChange, lateProgress, openForChange } from './compress.ts';

export async function runQuantize(output: Output, path: string, flags: QuantizeFlags): Promise<void> {
  const bits = Number(flags.bits) as Bits;
  const embeddingBits = Number(flags.embeddingBits) as Bits;
  const method = flags.method ?? (bits === 4 ? 'gptq' : 'rtn');
  if (method === 'rtn' && flags.calibrate !== undefined)
    throw new UsageError('--method rtn looks at the weights alone: --calibrate is for gptq', {
      hint: '--method gptq, or leave --calibrate out',
    });
  const opened = await openForChange(output, path, `q${bits}`, flags);
  const calibration = method === 'gptq' ? calibrationFor(output, opened, flags) : null;
  try {
    const progress = lateProgress(output, 'quantising');
    const { params, turned, report } = await quantizeModel(
      opened.loaded,
      {
        ...{ bits, embeddingBits, method, memory: calibrationMemory() },
        gptq: { damp: flags.damp, order: true },
        onProgress: (done, total) => progress.update(done, total),
      },
      calibration,
    ).finally(() => progress.finish());
    const calibrated: Record<string, number> = calibration ? { calibrate: calibration.tokens, damp: flags.damp } : {};
    const options: Record<string, string | number> = { bits, embeddingBits, method, ...calibrated };
    const types = Object.entries(report.types).map(([type, n]) => `${formatCount(n)} ${type}`);
    const unseen = report.unseenExperts;
    const lines = [
      `parameters: ${types.join(', ')}`,
      ...(unseen > 0 ? [`${unseen} experts saw no calibration text: rounded to nearest; --calibrate takes more`] : []),
    ];
    await finishChange(output, path, opened, { params, turned, by: 'quantize', options }, flags, {
      fields: { ...report },
      lines,
    });
  } finally {
    calibration?.dispose();
    opened.data.close();
  }
}
