// Small real text (this project's own dependencies), prepared data, and training runs of a fraction of a second.
import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { after } from 'node:test';
import { fileURLToPath } from 'node:url';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { Device } from '../../src/backend/index.ts';
import { type Prepared, prepareCorpus } from '../../src/data/prepare.ts';
import { parseTrainConfig, type TrainConfig, type TrainConfigInput } from '../../src/train/config.ts';
import type { JsonObject } from '../../src/train/run/canonical.ts';
import type { RunEvent } from '../../src/train/run/events.ts';
import { RunFolder } from '../../src/train/run/folder.ts';
import { type TrainSummary, train } from '../../src/train/trainer.ts';

export const checkout = resolve(fileURLToPath(new URL('../..', import.meta.url)));

/** A folder that is gone when this test file is done. */
export function temporaryFolder(name: string): string {
  const folder = mkdtempSync(join(tmpdir(), `ansatz-${name}-`));
  after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** About 170 KB of JavaScript and Markdown in several files; `small` takes 60 KB of it. */
export function writeText(folder: string, size: 'small' | 'usual' = 'usual'): string {
  mkdirSync(folder, { recursive: true });
  const from = join(checkout, 'node_modules', 'commander');
  const files = ['lib/argument.js', 'lib/error.js', 'lib/help.js', 'lib/option.js', 'lib/suggestSimilar.js'];
  if (size === 'usual') files.push('lib/command.js', 'Readme.md');
  for (const file of files) cpSync(join(from, file), join(folder, file.replace('/', '-')));
  if (size === 'small') cpSync(join(checkout, 'node_modules/zod/README.md'), join(folder, 'zod.md'));
  return folder;
}

/** Sentences of a small grammar: little to know, and more than a compressor's window can express. */
export function writeGrammar(folder: string, sentences = 6000): string {
  mkdirSync(folder, { recursive: true });
  const words = {
    which: ['small', 'large', 'green', 'quiet', 'sudden', 'heavy', 'bright', 'narrow'],
    who: ['river', 'engine', 'teacher', 'window', 'forest', 'printer', 'captain', 'garden'],
    does: ['follows', 'repairs', 'describes', 'crosses', 'remembers', 'measures', 'avoids', 'paints'],
  };
  let state = 12345;
  const pick = (list: string[]): string => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return list[state >>> 29];
  };
  const side = (): string => `the ${pick(words.which)} ${pick(words.who)}`;
  for (let file = 0; file < 10; file++) {
    const lines = Array.from({ length: sentences / 10 }, () => `${side()} ${pick(words.does)} ${side()}.`);
    writeFileSync(join(folder, `${file}.txt`), `${lines.join('\n')}\n`);
  }
  return folder;
}

export interface TinyData {
  folder: string;
  prepared: Prepared;
}

export async function tinyData(folder: string, text: string, vocab = 384): Promise<TinyData> {
  return { folder, prepared: await prepareCorpus({ paths: [text], folder, vocab }) };
}

type Overrides = Partial<Omit<TrainConfigInput, 'model' | 'data'>> & {
  model?: Partial<TrainConfigInput['model']>;
  data?: Partial<TrainConfigInput['data']>;
};

/** A decoder of width 32 with 2 layers on rows of 32 tokens. */
export function tinyConfig(data: TinyData, overrides: Overrides = {}): TrainConfigInput {
  const { model, data: how, ...rest } = overrides;
  return {
    name: 'tiny-test',
    seed: 3,
    precision: 'f32',
    batch: 4,
    steps: 12,
    optimiser: { kind: 'adamw', lr: 3e-3 },
    ...rest,
    model: {
      vocab: data.prepared.tokenizer.vocabSize,
      context: 32,
      width: 32,
      depth: 2,
      attention: { kind: 'full', heads: 2 },
      ffn: { kind: 'glu', hidden: 64 },
      ...model,
    },
    data: { folder: data.folder, ...how },
  };
}

export async function createRun(folder: string, config: TrainConfigInput): Promise<RunFolder> {
  return RunFolder.create(folder, parseTrainConfig(config) as unknown as JsonObject);
}

export interface Trained {
  run: RunFolder;
  events: RunEvent[];
  summary: TrainSummary;
}

/** Trains a run folder; with `stopAfter`, asks it to stop when that step is done. */
export async function trainRun(
  run: RunFolder,
  options: { stopAfter?: number; resume?: boolean; onEvent?: (event: RunEvent) => void } = {},
): Promise<Trained> {
  const stop = new AbortController();
  const events: RunEvent[] = [];
  const summary = await train(run, {
    resume: options.resume,
    signal: stop.signal,
    onEvent: (event) => {
      events.push(event);
      options.onEvent?.(event);
      if (event.event === 'step' && event.step === options.stopAfter) stop.abort();
    },
  });
  return { run, events, summary };
}

/** What training computed, step by step: bit-identical runs have equal lists. */
export type Numbers = (string | number)[][];

export function numbersOf(events: Iterable<RunEvent>): Numbers {
  const byStep = new Map<string, (string | number)[]>();
  for (const e of events) {
    if (e.event === 'step') byStep.set(`step ${e.step}`, ['step', e.step, e.tokens, e.loss, e.gradNorm, e.lr]);
    if (e.event === 'eval') byStep.set(`eval ${e.step}`, ['eval', e.step, e.loss, e.bitsPerByte]);
  }
  return [...byStep.values()].sort((a, b) => Number(a[1]) - Number(b[1]) || (a[0] === 'step' ? -1 : 1));
}

/** The same from the run's own log, whoever trained it. */
export async function numbersLogged(path: string): Promise<Numbers> {
  const events: RunEvent[] = [];
  for await (const event of RunFolder.open(path).events()) events.push(event);
  return numbersOf(events);
}

/** Trains a config to its end in a new folder. */
export async function trainWhole(folder: string, config: TrainConfigInput): Promise<Trained & { numbers: Numbers }> {
  const trained = await trainRun(await createRun(folder, config));
  return { ...trained, numbers: numbersOf(trained.events) };
}

export const checkpointsOf = (path: string): string[] => readdirSync(join(path, 'checkpoints')).sort();

export type { TrainConfig, TrainConfigInput };

/** What a device holds once the collector has been: constants of models, such as rotary tables, go with their models. */
export async function heldMemory(device: Device): Promise<{ bytes: number; allocations: number }> {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  for (let before = -1, quiet = 0; quiet < 3; ) {
    collect();
    await new Promise((done) => setTimeout(done, 5)); // finalisers run as tasks of their own
    const { liveAllocations } = device.memory();
    quiet = liveAllocations === before ? quiet + 1 : 0;
    before = liveAllocations;
  }
  const { liveBytes, liveAllocations } = device.memory();
  return { bytes: liveBytes, allocations: liveAllocations };
}
