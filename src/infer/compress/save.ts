/** A changed model as a run of its own: what generates, evaluates and serves takes it like any other. */
import { copyFileSync, existsSync } from 'node:fs';
import { basename, join } from 'node:path';
import { tokenizerHash } from '../../data/prepare.ts';
import type { Tokenizer } from '../../data/tokenizer/index.ts';
import { flatten, type ParamTree } from '../../nn/index.ts';
import { parseTrainConfig, type TrainConfig } from '../../train/config.ts';
import type { JsonObject } from '../../train/run/canonical.ts';
import { type Checkpoint, saveCheckpoint } from '../../train/run/checkpoint.ts';
import { RunFolder } from '../../train/run/folder.ts';
import { type Turned, tensorSource } from '../../train/stored.ts';
import { COMPANIONS } from '../formats/chat-files.ts';
import { madeWhole } from '../formats/place.ts';
import type { Measured } from './measure.ts';

export interface MadeRun {
  /** Where it goes: nothing is there yet. */
  readonly out: string;
  readonly source: RunFolder;
  readonly checkpoint: Checkpoint;
  readonly config: TrainConfig;
  readonly tokenizer: Tokenizer;
  readonly params: ParamTree;
  /** Quantised parameters that do not have their outputs in rows when they are not in blocks. */
  readonly turned?: ReadonlyMap<string, Turned>;
  readonly by: 'quantize' | 'prune';
  readonly options: Readonly<Record<string, string | number | boolean>>;
  readonly before: Measured;
  readonly after: Measured;
  readonly baselines: Record<string, number>;
}

/** Writes all of it, or nothing. */
export async function saveMade(m: MadeRun): Promise<void> {
  const { out, source, checkpoint, by, options, before, after } = m;
  const { step } = checkpoint;
  // The weights have what an adapter or a teacher did in them; neither has a part in this run.
  const { adapter: _, distil: __, ...own } = m.config;
  const config = parseTrainConfig({
    ...own,
    name: basename(out),
    madeFrom: { run: source.path, step, by, options },
  });
  const { tokens = 0, lossTokens = 0, seed = config.seed, imported } = checkpoint.state;
  const state = {
    ...{ step, tokens, lossTokens, elapsed: 0, skipsInARow: 0, seed },
    tokenizer: tokenizerHash(m.tokenizer),
    ...(imported === undefined ? {} : { imported }),
    made: { by, options, before: { ...before }, after: { ...after } },
  } as JsonObject;
  await madeWhole(out, async (draft) => {
    const run = await RunFolder.create(draft, config as unknown as JsonObject);
    m.tokenizer.save(join(draft, 'tokenizer.json'));
    for (const name of COMPANIONS)
      if (existsSync(join(source.path, name))) copyFileSync(join(source.path, name), join(draft, name));
    await saveCheckpoint(run, step, {
      tensors: { model: flatten(m.params).map(({ path, tensor }) => tensorSource(path, tensor, m.turned?.get(path))) },
      state,
    });
    const log = run.openEvents();
    const { loss, bitsPerByte } = after;
    log.write({ event: 'eval', step, tokens: Number(tokens), loss, bitsPerByte, baselines: m.baselines });
    log.close();
  });
}
