/** What `ansatz evaluate` does. */
import { AnsatzError } from '../../backend/errors.ts';
import { type CacheLoss, cacheLoss } from '../../infer/cache-loss.ts';
import type { ModelSpec } from '../../model/spec.ts';
import { disposeTree } from '../../nn/index.ts';
import {
  type EvaluateOptions,
  type Evaluation,
  evaluateCheckpoint,
  evaluationConfig,
} from '../../train/by-position.ts';
import { parseTrainConfig, type TrainConfig } from '../../train/config.ts';
import type { ObjectiveLoss } from '../../train/evaluate.ts';
import type { Checkpoint } from '../../train/run/checkpoint.ts';
import { RunFolder } from '../../train/run/folder.ts';
import { loadModel, openRunData, rowLength } from '../../train/session.ts';
import { extendContext } from '../../tricks/position-interpolation/index.ts';
import { withBlocks } from '../../tricks/xpos/index.ts';
import type { EvaluateFlags } from '../commands/evaluate.ts';
import { drawCurve } from '../term/curve.ts';
import { formatBytes, formatCount } from '../term/format.ts';
import type { Output } from '../term/output.ts';
import { pairs, table } from '../term/table.ts';
import { chooseCheckpoint } from './generate.ts';

export async function runEvaluate(output: Output, path: string, flags: EvaluateFlags): Promise<void> {
  const run = RunFolder.open(path);
  const checkpoint = await chooseCheckpoint(output, run, path, flags);
  const stored = parseTrainConfig(run.config);
  const config = flags.data ? { ...stored, data: { ...stored.data, folder: flags.data } } : stored;
  const trained = rowLength(config);
  const adapt = (model: ModelSpec, length: number): ModelSpec => {
    const scaled = flags.scaling ? extendContext(model, length, flags.scaling, trained) : model;
    return flags.blockwise ? withBlocks(scaled, Math.floor(trained / 2)) : scaled;
  };
  const options: EvaluateOptions = {
    length: flags.length,
    adapt,
    crossDocuments: flags.crossDocuments,
    maxTokens: flags.maxTokens,
    objective: flags.objective,
  };
  const progress = output.progress({ label: 'evaluating', unit: 'batches', quiet: true });
  const onProgress = (done: number): void => progress.update(done);
  const result = await evaluateCheckpoint(config, checkpoint, { ...options, onProgress }).finally(() =>
    progress.finish(),
  );
  const caches = flags.cache && (await throughCaches(output, evaluationConfig(config, options), checkpoint, flags));
  if (flags.byPosition && result.length > trained && !result.bins.some((b) => b.from >= trained && b.targets > 0))
    throw new AnsatzError(`no held-out document is longer than the ${trained} tokens of training`, {
      hint: `ansatz evaluate ${path} --by-position --length ${result.length} --cross-documents`,
    });
  const { bins, ...whole } = result;
  const { scaling = null, blockwise = false } = flags;
  output.result(
    'evaluate',
    {
      ...{ run: path, step: checkpoint.step, scaling, blockwise, ...whole },
      ...(caches && { caches }),
      ...(flags.byPosition ? { bins } : {}),
    },
    [
      ...summary(result),
      ...(caches ? ['', ...cacheRows(result, caches)] : []),
      ...(flags.byPosition ? ['', ...curve(output, result), '', ...rows(result)] : []),
    ],
  );
}

/** The same text through the decoder, once for each format of its cache. */
async function throughCaches(
  output: Output,
  config: TrainConfig,
  checkpoint: Checkpoint,
  { cache = [], maxTokens }: EvaluateFlags,
): Promise<CacheLoss[]> {
  const data = openRunData(config);
  const progress = output.progress({ label: 'through the cache', unit: 'batches', quiet: true });
  try {
    const loaded = await loadModel(config, checkpoint);
    try {
      const losses: CacheLoss[] = [];
      for (const format of new Set(cache))
        losses.push(await cacheLoss(loaded, data, format, maxTokens, (done) => progress.update(done)));
      return losses;
    } finally {
      disposeTree(loaded.params);
    }
  } finally {
    progress.finish();
    data.close();
  }
}

function cacheRows(whole: Evaluation, caches: readonly CacheLoss[]): string[] {
  const right = { align: 'right' as const };
  const columns = [
    { title: 'cache' },
    { title: 'loss', ...right },
    { title: '', ...right },
    { title: 'a token', ...right },
  ];
  return table(
    columns,
    caches.map(({ format, loss, bytesPerToken }) => {
      const percent = (loss / whole.loss - 1) * 100;
      return [format, loss.toFixed(4), `${percent < 0 ? '' : '+'}${percent.toFixed(3)}%`, formatBytes(bytesPerToken)];
    }),
  );
}

const summary = (r: Evaluation): string[] =>
  pairs([
    ['loss', `${r.loss.toFixed(4)} nats a token`],
    ['bits per byte', r.bitsPerByte.toFixed(4)],
    ['targets', `${formatCount(r.targets)}, in rows of ${r.length} tokens (trained at ${r.trained})`],
    ...(r.objective ? [objectiveLine(r.objective)] : []),
  ]);

const objectiveLine = ({ kind, loss, targets }: ObjectiveLoss): [string, string] => [
  `objective ${kind}`,
  loss === null ? 'no targets' : `${loss.toFixed(4)} nats a target, ${formatCount(targets)} targets`,
];

function curve(output: Output, { bins, trained, length }: Evaluation): string[] {
  const points = bins.flatMap((b) => (b.loss === null ? [] : [{ x: (b.from + b.to) / 2, y: b.loss }]));
  const marks = points.filter((p) => p.x >= trained);
  return drawCurve({
    series: [
      { points, kind: 'line' },
      ...(marks.length > 0 ? [{ points: marks, kind: 'marks' as const, paint: output.style.yellow }] : []),
    ],
    width: Math.min(100, output.columns),
    height: 14,
    unicode: output.unicode,
    xName: 'position',
    xRange: [0, length],
  });
}

function rows({ bins, trained }: Evaluation): string[] {
  const columns = [
    { title: 'positions' },
    { title: 'loss', align: 'right' as const },
    { title: '+-', align: 'right' as const },
    { title: 'targets', align: 'right' as const },
    { title: '' },
  ];
  return table(
    columns,
    bins.map((b) => [
      `${b.from} to ${b.to - 1}`,
      b.loss === null ? '-' : b.loss.toFixed(4),
      b.error === null ? '-' : b.error.toFixed(4),
      formatCount(b.targets),
      b.from >= trained ? 'past the training length' : '',
    ]),
  );
}
