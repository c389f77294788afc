// Runs with random weights, and quantised ones made of them as `ansatz quantize` makes them, without measuring anything.
import { cpSync } from 'node:fs';
import { basename, join } from 'node:path';
import { Tokenizer } from '../../src/data/tokenizer/index.ts';
import { type Bits, quantizeModel } from '../../src/infer/compress/quantize.ts';
import { saveMade } from '../../src/infer/compress/save.ts';
import type { ParamTree } from '../../src/nn/index.ts';
import { disposeTree, flatten } from '../../src/nn/index.ts';
import { latestCheckpoint } from '../../src/train/run/checkpoint.ts';
import { RunFolder } from '../../src/train/run/folder.ts';
import { loadModel } from '../../src/train/session.ts';

const measured = { loss: 1, bitsPerByte: 1, bytes: 0, tokensPerSecond: null };

/** A quantised copy of a run; `with` sees its parameters before they go. */
export async function quantisedRun(
  run: RunFolder,
  out: string,
  bits: Bits,
  seen: (params: ParamTree) => void = () => {},
): Promise<RunFolder> {
  const checkpoint = (await latestCheckpoint(run))!;
  const loaded = await loadModel(run.config, checkpoint);
  const { params, turned } = await quantizeModel(
    loaded,
    {
      ...{ bits, embeddingBits: 8, method: 'rtn', memory: 1 },
      gptq: { damp: 0.01, order: true },
    },
    null,
  );
  seen(params);
  await saveMade({
    ...{ out, source: run, checkpoint, config: loaded.config, params, turned, by: 'quantize' },
    ...{ options: { bits }, before: measured, after: measured, baselines: {} },
    tokenizer: Tokenizer.fromFile(join(run.path, 'tokenizer.json')),
  });
  const own = new Set(flatten(params).map((p) => p.tensor));
  disposeTree(params);
  for (const { tensor } of flatten(loaded.params)) if (!own.has(tensor)) tensor.dispose();
  return RunFolder.open(out);
}

/** A copy whose files are its own. */
export function copiedRun(run: RunFolder, to: string): RunFolder {
  cpSync(run.path, join(to, basename(run.path)), { recursive: true });
  return RunFolder.open(join(to, basename(run.path)));
}
