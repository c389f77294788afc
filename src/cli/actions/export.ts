/** What `ansatz export` does. */
import { exportGguf, exportHuggingFace } from '../../infer/formats/export.ts';
import { parseTrainConfig } from '../../train/config.ts';
import { RunFolder } from '../../train/run/folder.ts';
import type { ExportFlags } from '../commands/export.ts';
import { quoted, shortPath, spoken } from '../invocation.ts';
import { formatBytes } from '../term/format.ts';
import { type Output, UsageError } from '../term/output.ts';
import { chooseCheckpoint, runTokenizer } from './generate.ts';

export async function runExport(output: Output, path: string, flags: ExportFlags): Promise<void> {
  const { to } = flags;
  if (to === 'hf' && (flags.type === 'q8_0' || flags.type === 'q4_0'))
    throw new UsageError(`--type ${flags.type} is a type of GGUF files`, {
      hint: '--to gguf, or --type f32, f16 or bf16',
    });
  const run = RunFolder.open(path);
  const config = parseTrainConfig(run.config);
  // The type that a quantised run loses nothing in.
  const { type = to === 'hf' ? 'f32' : config.madeFrom?.by === 'quantize' ? 'q8_0' : 'f16' } = flags;
  const out = flags.out ?? `${run.path}${to === 'gguf' ? `.${type}.gguf` : '-hf'}`;
  const checkpoint = await chooseCheckpoint(output, run, path, flags);
  const tokenizer = runTokenizer(run, config.data.folder, checkpoint);
  const progress = output.progress({ label: 'exporting', unit: 'tensors', quiet: true });
  const onProgress = (done: number): void => progress.update(done);
  const options = { config, checkpoint, tokenizer, run: run.path, out, onProgress };
  const report = await (to === 'gguf'
    ? exportGguf(options, type)
    : exportHuggingFace(options, type as 'f32' | 'f16' | 'bf16')
  ).finally(() => progress.finish());
  for (const note of report.notes) output.warn(note);
  const fields = { run: path, step: checkpoint.step, to, type, out, ...report };
  const next = to === 'hf' ? spoken(`ansatz import ${quoted(shortPath(out))} --out RUN`) : undefined;
  output.result('export', { ...fields, ...(next ? { next: [next] } : {}) }, [
    `wrote ${shortPath(out)}: ${report.architecture}, ${report.tensors} tensors, ${type}, ${formatBytes(report.bytes)}`,
    ...(next ? [`next: ${next}`] : []),
  ]);
}
