/** What `ansatz import` does. */
import { importHuggingFace } from '../../infer/formats/import.ts';
import type { ImportFlags } from '../commands/import.ts';
import { quoted, spoken } from '../invocation.ts';
import { formatCount } from '../term/format.ts';
import type { Output } from '../term/output.ts';

export async function runImport(output: Output, folder: string, flags: ImportFlags): Promise<void> {
  const progress = output.progress({ label: 'importing', unit: 'parameters', quiet: true });
  const report = await importHuggingFace({
    folder,
    out: flags.out,
    context: flags.context,
    onProgress: (done) => progress.update(done),
  }).finally(() => progress.finish());
  const { spec, architecture, parameters, tokens, types } = report;
  const next = [spoken(`ansatz generate ${quoted(flags.out)} --prompt "Once"`)];
  output.result(
    'import',
    { folder, run: flags.out, architecture, parameters, tokens, types, context: spec.context, model: spec, next },
    [
      `imported ${architecture}: ${formatCount(parameters)} parameters (${types.join(', ')}), ${tokens} tokens, context ${spec.context}`,
      `next: ${next[0]}`,
    ],
  );
}
