// The coordinate check passes under muP, for every optimiser and for depth, and fails for every rule that is broken; the
// best learning rate stays put.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { z } from 'zod';
import { buildModel } from '../../src/model/model.ts';
import {
  declared,
  flatten,
  type NamedParam,
  type Parametrisation,
  type ParamTree,
  registerParametrisation,
} from '../../src/nn/index.ts';
import { parseTrainConfig, type TrainConfig } from '../../src/train/config.ts';
import { coordinates, defaultBand, judge, slope, type Verdict } from '../../src/train/coordinates.ts';
import { rateSweep, vertex } from '../../src/train/rate-sweep.ts';
import { atDepth, atWidth } from '../../src/train/resize.ts';
import { mup } from '../../src/tricks/mup/index.ts';

const BASE = 64;
const rules = { baseWidth: BASE, alpha: 1, embedding: 1, output: 1, attention: 1, zeroOutput: true };

/** One rule of the table broken. */
const mutations: Record<string, (right: Parametrisation, m: number) => Parametrisation> = {
  none: (right) => right,
  'hidden rates do not fall': (right) => withSpec(right, 'hidden', { lrMult: 1, widthMult: 1 }),
  'hidden rates fall with the root only': (right, m) => withSpec(right, 'hidden', { lrMult: m ** -0.5 }),
  'output unscaled': (right) => ({ ...right, scales: { ...right.scales, logits: 1 } }),
  'embedding rates grow with width': (right, m) => withSpec(right, 'embedding', { lrMult: m }),
  'embedding treated as hidden': (right, m) => withSpec(right, 'embedding', { lrMult: 1 / m }),
  'router as hidden': (right, m) => asRouter(right, 1 / m, true),
  'router unscaled': (right) => asRouter(right, 1, true),
  'branches grow': (right, m) => ({ ...right, scales: { ...right.scales, branch: Math.sqrt(m) } }),
  'attention 1/sqrt(d)': (right) => ({ ...right, scales: { ...right.scales, attention: (d) => 1 / Math.sqrt(d) } }),
};

const withSpec = (right: Parametrisation, role: string, change: object): Parametrisation => ({
  ...right,
  param: (p) => (p.spec.role === role ? { ...right.param(p), ...change } : right.param(p)),
});
const isRouter = ({ spec }: NamedParam): boolean => spec.role === 'output' && !spec.logits;
const asRouter = (right: Parametrisation, lrMult: number, declaredInit: boolean): Parametrisation => ({
  ...right,
  param: (p) =>
    isRouter(p) ? { ...right.param(p), lrMult, ...(declaredInit ? { init: p.spec.init } : {}) } : right.param(p),
});

registerParametrisation({
  kind: 'mutant',
  summary: 'muP with a rule broken',
  options: z.strictObject({ mutation: z.string(), baseHeadWidth: z.int().optional() }),
  build: ({ mutation, baseHeadWidth }, sizes) =>
    mutations[mutation](mup({ ...rules, baseHeadWidth }, sizes), sizes.width / BASE),
});

const small = (model: object = {}, changes: object = {}): TrainConfig =>
  parseTrainConfig({
    model: {
      ...{ vocab: 256, context: 48, width: BASE, depth: 2, tied: false, norm: { kind: 'rms', scale: false } },
      attention: { kind: 'full', heads: 2, kvHeads: 1 },
      ffn: { kind: 'glu', hidden: 160 },
      ...model,
    },
    ...{ data: { folder: 'none', crossDocuments: true }, precision: 'f32', batch: 2, steps: 10 },
    ...{ optimiser: { kind: 'adamw', lr: 3e-3, eps: 1e-12 }, schedule: { kind: 'constant' } },
    ...changes,
  });
const mupKind = { kind: 'mup', baseWidth: BASE, zeroOutput: true };
const moe = { kind: 'moe', experts: 4, active: 2, expert: { kind: 'glu', hidden: 48 } };

async function check(config: TrainConfig, options: { widths?: number[]; depths?: number[] } = {}): Promise<Verdict[]> {
  const sizes = options.depths
    ? options.depths.map((size) => ({ size, config: atDepth(config, size) }))
    : (options.widths ?? [64, 128, 256]).map((size) => ({ size, config: atWidth(config, size) }));
  const band = options.depths ? { ...defaultBand, limit: 0.2, noisy: 0.3 } : defaultBand;
  return judge(await coordinates({ sizes, seeds: 3, steps: 4 }), band);
}
const failed = (all: Verdict[]): string[] =>
  all.filter((v) => !v.ok).map((v) => `${v.name} ${v.level.toFixed(2)} ${v.change.toFixed(2)}`);

describe('coordinate check', () => {
  const optimisers = {
    adamw: { kind: 'adamw', lr: 3e-3, eps: 1e-12 },
    lion: { kind: 'lion', lr: 1e-3 },
    muon: { kind: 'muon' },
    // Factored at every width: the switch to whole moments below 128 is another optimiser.
    adafactor: { kind: 'adafactor', lr: 0.03, factorFrom: 32 },
  };
  for (const [name, optimiser] of Object.entries(optimisers))
    test(`muP with ${name}: every activation stays`, async () => {
      assert.deepEqual(failed(await check(small({ parametrisation: mupKind }, { optimiser }))), []);
    });

  test('muP with a tied head', async () => {
    assert.deepEqual(failed(await check(small({ parametrisation: mupKind, tied: true }))), []);
  });

  test('muP with experts and their router', async () => {
    const all = await check(small({ parametrisation: { kind: 'mutant', mutation: 'none' }, ffn: moe }));
    assert.ok(all.some((v) => v.name.endsWith('router')));
    assert.deepEqual(failed(all), []);
  });

  test('the standard parametrisation fails', async () => {
    const bad = failed(await check(small({ parametrisation: 'standard' })));
    assert.ok(
      bad.some((b) => b.startsWith('blocks.1.residual')),
      bad.join(),
    );
  });

  for (const mutation of Object.keys(mutations).filter((m) => m !== 'none' && !m.startsWith('attention')))
    test(`broken: ${mutation}`, async () => {
      const ffn = mutation.startsWith('router') ? { ffn: moe } : {};
      const bad = failed(await check(small({ parametrisation: { kind: 'mutant', mutation }, ...ffn })));
      assert.ok(bad.length > 0, 'the check does not notice');
    });

  test('broken: attention 1/sqrt(d), when heads grow wider; scores from zero', async () => {
    // Queries start at zero, so that scores hold nothing random.
    const edit = (params: ParamTree): void => {
      for (const { path, tensor } of flatten(params)) {
        if (!path.endsWith('qkv')) continue;
        const x = tensor.dataSync().slice();
        tensor.write(x.fill(0, 0, x.length / 3));
      }
    };
    const worst = async (mutation: string): Promise<number> => {
      const parametrisation = { kind: 'mutant', mutation, baseHeadWidth: 16 };
      const config = small(
        {
          parametrisation,
          vocab: 64,
          context: 32,
          attention: { kind: 'full', heads: 4, headWidth: 16 },
          ffn: { kind: 'glu', hidden: 64 },
        },
        { batch: 4 },
      );
      const sizes = [64, 128, 256, 512].map((size) => ({ size, config: atWidth(config, size, { grow: 'headWidth' }) }));
      const verdicts = judge(await coordinates({ sizes, seeds: 2, steps: 6, edit }), { ...defaultBand, from: 5 });
      return Math.max(...verdicts.filter((v) => v.name.endsWith('attention.logits')).map((v) => v.change));
    };
    const [right, wrong] = [await worst('none'), await worst('attention 1/sqrt(d)')];
    assert.ok(right <= defaultBand.noisy, `right: ${right}`);
    assert.ok(wrong > defaultBand.noisy && wrong > right + 0.3, `wrong: ${wrong}, right: ${right}`);
  });

  test('CompleteP keeps activations over depth, 1/sqrt(2 depth) does not', async () => {
    const deep = (parametrisation: unknown) =>
      check(small({ parametrisation, embeddingStd: 1, width: 96, attention: { kind: 'full', heads: 3 } }), {
        depths: [4, 8, 16],
      });
    assert.deepEqual(failed(await deep({ ...mupKind, baseWidth: 96, baseDepth: 2 })), []);
    assert.ok(failed(await deep('standard')).length > 0);
  });

  test('over depth, from two blocks on: what has half of the blocks behind it is compared', async () => {
    const shallow = (parametrisation: unknown, depths: number[]) =>
      check(small({ parametrisation, embeddingStd: 1, width: 96, attention: { kind: 'full', heads: 3 } }), { depths });
    const right = { ...mupKind, baseWidth: 96, baseDepth: 2 };
    for (const depths of [
      [2, 4, 8],
      [3, 6, 12],
    ]) {
      const all = await shallow(right, depths);
      assert.deepEqual(failed(all), []);
      assert.deepEqual(
        all
          .map((v) => v.name)
          .filter((n) => /block|residual/.test(n))
          .sort(),
        ['blocks.attention.logits', 'blocks.ffn.pre', 'residual'],
      );
    }
    assert.ok(failed(await shallow('standard', [2, 4, 8])).length > 0);
  });

  test('each stack of an encoder-decoder goes by its own depth', () => {
    for (const layout of ['encoder-decoder', 'terraformer']) {
      const parametrisation = { ...mupKind, baseDepth: 1, alpha: 0.5 };
      const stacks = { depth: 4, layout: { kind: layout, encoderDepth: 16 } };
      const { model } = small({ parametrisation, ...stacks }, { objective: 'prefix-lm' });
      const of = (path: string): number => declared(buildModel(model)).find((p) => p.path === path)!.spec.lrMult!;
      assert.equal(of('encoder.blocks.0.ffn.down'), 1 / 4);
      assert.equal(of('blocks.0.ffn.down'), 1 / 2);
    }
  });
});

describe('equivalent forms', () => {
  // Gradients change in size, so that clipping would tell the forms apart.
  // (multiplier, std, rate) and (multiplier theta, std / theta, rate / theta) are one model to Adam without epsilon.
  const THETA = 4;
  registerParametrisation({
    kind: 'mup-moved',
    summary: 'muP with multipliers moved into initial values and rates',
    options: z.strictObject({}),
    build: (_, sizes) => {
      const right = mup({ ...rules, zeroOutput: false }, sizes);
      const { scales } = right;
      return {
        scales: { ...scales, logits: scales.logits * THETA, embedding: scales.embedding * THETA },
        param: (p) => {
          const spec = right.param(p);
          const moved = spec.role === 'embedding' || spec.logits;
          if (!moved || spec.init.kind !== 'normal') return spec;
          return { ...spec, init: { kind: 'normal', std: spec.init.std / THETA }, lrMult: (spec.lrMult ?? 1) / THETA };
        },
      };
    },
  });

  test('moving a multiplier into initial values and rates changes no step', async () => {
    const losses = async (parametrisation: object): Promise<number[]> => {
      const optimiser = { kind: 'adamw', lr: 3e-3, eps: 1e-30, decay: 0 };
      const config = atWidth(small({ parametrisation }, { optimiser, clip: 0 }), 128);
      return [...(await coordinates({ sizes: [{ size: 128, config }], seeds: 1, steps: 20 })).losses[0]];
    };
    const plain = await losses({ ...mupKind, zeroOutput: false });
    const moved = await losses({ kind: 'mup-moved' });
    plain.forEach((loss, t) => {
      assert.ok(Math.abs(loss - moved[t]) <= 1e-4 * loss, `step ${t}: ${loss} and ${moved[t]}`);
    });
    assert.ok(plain[19] < 0.9 * plain[0]);
  });
});

describe('transfer of the learning rate', () => {
  test('the best rate stays put under muP', async () => {
    const config = small(
      { vocab: 32, context: 24, depth: 1, parametrisation: mupKind },
      { batch: 16, steps: 60, schedule: { kind: 'cosine', warmup: 0.1, floor: 0 } },
    );
    const rates = [-2, -1, 0, 1, 2].map((k) => 0.012 * 2 ** k);
    const sizes = [64, 256].map((size) => ({ size, config: atWidth(config, size) }));
    const [first, second] = await rateSweep({ sizes, rates, seeds: 1, onData: false });
    assert.ok(first.inside && second.inside, `${first.losses} ${second.losses}`);
    assert.ok(Math.abs(second.best - first.best) <= 0.6, `${first.best} and ${second.best}`);
    // Wider is better, at the rate that was best for the narrow one.
    const k = first.losses.indexOf(Math.min(...first.losses));
    assert.ok(second.losses[k] < first.losses[k]);
  });

  test('arithmetic', () => {
    assert.ok(Math.abs(slope([1, 2, 3], [5, 7, 9]) - 2) < 1e-12);
    const parabola = (x: number): number => 3 * (x - 1.3) ** 2 + 1;
    const x = [-1, 0, 1, 2, 3];
    const found = vertex(x, x.map(parabola));
    assert.ok(Math.abs(found.best - 1.3) < 1e-9 && found.inside);
    assert.equal(vertex([0, 1, 2], [1, 2, 3]).inside, false);
    assert.equal(vertex([0, 1, 2], [3, 1, Number.POSITIVE_INFINITY]).best, 1);
  });
});

describe('resizing', () => {
  test('sizes grow together, whatever is nested', () => {
    const { model } = atWidth(small({ ffn: moe }), 256);
    assert.equal(model.width, 256);
    assert.deepEqual([model.attention.heads, model.attention.kvHeads], [8, 4]);
    assert.equal((model.ffn.expert as { hidden: number }).hidden, 192);
    assert.equal(model.ffn.experts, 4);
    assert.throws(() => atWidth(small(), 96), /kvHeads would be 1.5/);
  });
});
