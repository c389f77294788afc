// Train short, test long: which encodings keep their loss past the length that they were trained at.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { createBatch } from '../../src/data/types.ts';
import { buildModel } from '../../src/model/model.ts';
import { disposeTree, initialise } from '../../src/nn/index.ts';
import { binEdges, evaluationConfig, PositionSums } from '../../src/train/by-position.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { EvalStep, TrainStep } from '../../src/train/step.ts';
import { withBlocks } from '../../src/tricks/xpos/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { cpu } from '../support/logits.ts';
import { configOf, smallSpec } from '../support/small-models.ts';
import { fillBatch, type Row } from '../support/toy-task.ts';

type Maker = (rng: Rng, length: number) => Row;

interface Task {
  readonly positions: unknown;
  readonly vocab: number;
  readonly length: number;
  readonly steps: number;
  readonly row: Maker;
}

/** Trains, then gives mean losses: of rows of `length`, all positions from `from` to `to`. */
async function trained(task: Task) {
  const { positions, vocab, length, steps } = task;
  const config = parseTrainConfig(
    configOf(
      smallSpec({
        ...{ vocab, context: length, width: 64, depth: 2, positions: positions as 'rope' },
        attention: { kind: 'full', heads: 4 },
        ffn: { kind: 'glu', hidden: 96 },
      }),
      { batch: 32, steps, optimiser: { kind: 'adamw', lr: 5e-3, decay: 0.01 }, schedule: { kind: 'cosine' } },
    ),
  );
  const model = buildModel(config.model);
  const params = initialise(model, cpu, 1);
  const step = new TrainStep(cpu, model, params, config, length);
  const [batch, rng] = [createBatch(32, length), new Rng('train')];
  for (let k = 0; k < steps; k++) await step.run(k, [fillBatch(batch, () => task.row(rng, length))]);
  step.dispose();

  const lossesAt = async (rows: Maker, long: number, blockwise: boolean): Promise<PositionSums> => {
    const c = evaluationConfig(config, { length: long, adapt: (m) => (blockwise ? withBlocks(m, length / 2) : m) });
    const evaluation = new EvalStep(cpu, buildModel(c.model), params, c, long);
    const [held, sums, draw] = [createBatch(c.batch, long), new PositionSums(long), new Rng('held out')];
    for (let k = 0; k < 64 / c.batch; k++) {
      fillBatch(held, () => rows(draw, long));
      sums.add(held, await evaluation.rows(held), false);
    }
    evaluation.dispose();
    return sums;
  };
  return { lossesAt, dispose: () => disposeTree(params) };
}

/** A word of 6 to 12 letters, again and again: from the second time on it can be copied. */
const periodic: Maker = (rng, length) => {
  const word = Array.from({ length: rng.int(6, 12) }, () => rng.int(0, 23));
  return { tokens: Array.from({ length: length + 1 }, (_, t) => word[t % word.length]), counts: (t) => t >= 12 };
};

describe('a repeated word, four times as long as in training', () => {
  const length = 48;
  const task = (positions: unknown): Task => ({ positions, vocab: 24, length, steps: 300, row: periodic });
  /** Losses at the end of the trained length and at the end of rows four times as long, without and with blocks. */
  async function losses(positions: unknown, ...blockwise: boolean[]): Promise<[number, number][]> {
    const { lossesAt, dispose } = await trained(task(positions));
    const out: [number, number][] = [];
    for (const blocks of blockwise) {
      const sums = await lossesAt(periodic, 4 * length, blocks);
      out.push([sums.bin(length / 2, length).loss!, sums.bin(3 * length, 4 * length).loss!]);
    }
    dispose();
    return out;
  }

  test('alibi gets better, rope gets worse', async () => {
    const [[short, long]] = await losses('alibi', false);
    assert.ok(short < 1.2 && long <= short, `alibi ${short}, then ${long}`);
    const [[near, far]] = await losses('rope', false);
    assert.ok(far > near + 0.2, `rope ${near}, then ${far}`);
  });

  test('xpos rises without blocks and stays with them', async () => {
    const [[short, long], [near, far]] = await losses({ kind: 'xpos', scaleBase: 16 }, false, true);
    assert.ok(long > short + 0.05, `without ${short}, then ${long}`);
    assert.ok(Math.abs(near - short) < 1e-4, `within the trained length blocks change nothing: ${near}, ${short}`);
    assert.ok(far <= near + 0.02, `with ${near}, then ${far}`);
  });

  test('t5-bias stays with blocks', async () => {
    const [[near, far]] = await losses({ kind: 't5-bias', maxDistance: 32 }, true);
    assert.ok(far <= near + 0.03, `${near}, then ${far}`);
  });
});

describe('copying words of up to 10 letters, then of 20', () => {
  const length = 44;
  /** A word of different letters, a mark, the word again, an end. */
  const copy =
    (low: number, high: number): Maker =>
    (rng) => {
      const n = rng.int(low, high);
      const word = rng.shuffled(Array.from({ length: 24 }, (_, k) => k)).slice(0, n);
      const tokens = [...word, 24, ...word];
      while (tokens.length <= length) tokens.push(25);
      return { tokens, counts: (t) => t >= n && t <= 2 * n };
    };
  async function losses(positions: unknown): Promise<[number, number]> {
    const { lossesAt, dispose } = await trained({ positions, vocab: 26, length, steps: 500, row: copy(2, 10) });
    const [short, long] = [await lossesAt(copy(2, 10), length, false), await lossesAt(copy(20, 20), length, false)];
    dispose();
    return [short.bin(0, length).loss!, long.bin(0, length).loss!];
  }

  test('without positions, and with alibi, twice the length is still better than guessing; with rope it is worse', async () => {
    const guess = Math.log(24);
    const [nope, alibi, rope] = [await losses('none'), await losses('alibi'), await losses('rope')];
    const seen = JSON.stringify({ nope, alibi, rope });
    assert.ok(nope[0] < 1.5 && alibi[0] < 0.7 && rope[0] < 0.9, seen);
    assert.ok(nope[1] < guess && alibi[1] < guess && rope[1] > guess, seen);
  });
});

describe('bins', () => {
  test('eight up to the trained length, as wide ones past it, every position in one', () => {
    assert.deepEqual(binEdges(64, 64), [0, 8, 16, 24, 32, 40, 48, 56, 64]);
    assert.deepEqual(binEdges(100, 64).slice(-4), [80, 88, 96, 100]);
    assert.ok(binEdges(128, 64).includes(64));
    const sums = new PositionSums(4);
    const batch = createBatch(2, 4);
    batch.targets.set([1, -1, 1, 1, 1, 1, -1, 1]);
    batch.positions.set([0, 1, 0, 1, 0, 1, 2, 3]);
    sums.add(batch, [1, 9, 2, 3, 4, 5, 9, 6], true);
    assert.deepEqual([...sums.targets], [3, 2, 0, 1]);
    assert.deepEqual([...sums.nats], [7, 8, 0, 6]);
    assert.equal(sums.bin(2, 3).loss, null);
    assert.deepEqual([sums.bin(0, 2).loss, sums.bin(0, 4).targets], [3, 6]);
  });
});
