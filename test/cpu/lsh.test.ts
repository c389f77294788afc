// Models with hashed attention: what the future can reach, documents, gradients, devices, second passes, captured steps.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { RefDevice } from '../../src/backend/ref/device.ts';
import type { ModelSpecInput } from '../../src/model/spec.ts';
import { Choices, flatten, forwardContext } from '../../src/nn/index.ts';
import {
  capture,
  gradients,
  lshAttention,
  lshHash,
  lshSort,
  noGrad,
  RandomState,
  scope,
  sum,
  Tensor,
} from '../../src/tensor/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { refValues, slope, valuesOf, withoutRounding } from '../support/ref-values.ts';
import { checkCausality, normalTensor, slotLayer } from '../support/slot-layer.ts';
import { smallSpec, stepOn } from '../support/small-models.ts';

const cpu = new CpuDevice();
const ref = new RefDevice();

const [T, H, D, R, C] = [200, 2, 16, 2, 16];
const rotations = normalTensor(cpu, 'rotations', [H, R, 13, D]);

interface Pass {
  readonly out: Float64Array;
  readonly place: Int32Array;
}

/** Attention of one row by fixed rotations. */
function attend(values: Float64Array, dtype: 'f32' | 'bf16', segments: number[] | null = null): Pass {
  return scope(() => {
    const x = Tensor.from(cpu, values, [1, T, 2 * H, D], dtype);
    const seg = segments && Tensor.from(cpu, segments, [1, T], 'i32');
    const buckets = lshHash(x, H, rotations, [26]);
    const chunks = lshSort(x, { heads: H, rounds: R, chunk: C, buckets, count: 26, segments: seg });
    const out = lshAttention(x, chunks, { scale: 1, segments: seg });
    return { out: Float64Array.from(valuesOf(out)), place: chunks.place.dataSync() as Int32Array };
  });
}

const row = (seed: string): Float64Array => {
  const rng = new Rng(seed);
  return Float64Array.from({ length: T * 2 * H * D }, () => Math.fround(rng.normal()));
};
/** The row with the vectors of a token replaced. */
function changed(values: Float64Array, t: number): Float64Array {
  const other = values.slice();
  const rng = new Rng(`token ${t}`);
  for (let k = 0; k < 2 * H * D; k++) other[t * 2 * H * D + k] = rng.normal();
  return other;
}
/** Whether an output of query i and head h differs. */
const differs = (a: Pass, b: Pass, i: number, h: number): boolean =>
  Array.from({ length: D }, (_, d) => (i * H + h) * D + d).some((k) => a.out[k] !== b.out[k]);

/** Whether the tokens up to i that share its chunk, and those of the chunk before, are the same in every round. */
function sameChunks(a: Pass, b: Pass, i: number, h: number): boolean {
  const n = Math.ceil(T / C);
  for (let r = 0; r < R; r++)
    for (let j = 0; j < i; j++) {
      const at = (h * R + r) * T;
      const [x, y] = [a, b].map((p) => Math.min(2, (p.place[at + i] - p.place[at + j] + n) % n));
      if (x !== y) return false;
    }
  return true;
}

describe('the future', () => {
  for (const dtype of ['f32', 'bf16'] as const)
    test(`changes no output before it where it moves no earlier token to another chunk (${dtype})`, () => {
      const values = row('future');
      const base = attend(values, dtype);
      let [held, moved] = [0, 0];
      for (const t of [40, 77, 120, 199]) {
        const other = attend(changed(values, t), dtype);
        for (let h = 0; h < H; h++) {
          assert.ok(differs(base, other, t, h) || t === 0);
          for (let i = 0; i < t; i++)
            if (sameChunks(base, other, i, h)) {
              held++;
              assert.ok(!differs(base, other, i, h), `token ${t} changes the output of ${i}`);
            } else if (differs(base, other, i, h)) moved++;
        }
      }
      // Borders of chunks do move: which earlier tokens are seen depends on later ones. Known of sorted hashing.
      assert.ok(held > 500 && moved > 0, `${held} outputs held, ${moved} moved with the borders`);
    });

  test('one chunk, or chunks of neighbours: no look ahead at all, no look across documents', () => {
    for (const attention of [
      { kind: 'lsh', heads: 2, chunk: 9, rounds: 3 },
      { kind: 'lsh', heads: 2, chunk: 3, buckets: 1 },
    ])
      checkCausality(cpu, smallSpec({ attention }));
  });

  test('documents in a row do not see each other, nor move each other’s chunks', () => {
    const values = row('documents');
    const segments = Array.from({ length: T }, (_, t) => (t < 90 ? 1 : 2));
    const base = attend(values, 'f32', segments);
    for (const t of [30, 150]) {
      const other = attend(changed(values, t), 'f32', segments);
      for (let i = 0; i < T; i++)
        for (let h = 0; h < H; h++)
          if (segments[i] !== segments[t]) assert.ok(!differs(base, other, i, h), `token ${t} changes output ${i}`);
    }
  });
});

const attention = (options: Record<string, unknown> = {}) => ({ kind: 'lsh', heads: 2, chunk: 2, ...options });
const variants: Readonly<Record<string, ModelSpecInput>> = {
  'two rounds, rope': smallSpec({ attention: attention() }),
  'pairs repeated, own bucket, biases, learned positions': smallSpec({
    attention: attention({ dedupe: false, ownBucket: true, buckets: 2, rounds: 3, bias: true }),
    positions: 'learned',
  }),
  'looks back two, no positions, muP': smallSpec({
    attention: attention({ lookBack: 2, headWidth: 5, chunk: 1, rounds: 4 }),
    ...{ positions: 'none', parametrisation: { kind: 'mup', baseWidth: 6 } },
  }),
};

describe('models', () => {
  for (const [name, spec] of Object.entries(variants)) {
    test(`${name}: gradients against finite differences`, () =>
      withoutRounding(() => {
        const step = stepOn(ref, spec, { batch: 2, length: 6, segmented: true });
        const grads = scope(() => step.run().grads.map((g) => Float64Array.from(refValues(g))));
        // The chunks stay as they are at the centre: the loss jumps where a bucket changes.
        const choices = new Choices();
        const evaluate = (): number => {
          const c = forwardContext({ device: ref, compute: 'f32', choices });
          return refValues(step.model.loss(step.params, step.batch, c).total)[0];
        };
        noGrad(evaluate);
        const loss = (): number => {
          choices.rewind();
          return scope(() => noGrad(evaluate));
        };
        flatten(step.params).forEach(({ path, tensor }, k) => {
          const values = refValues(tensor);
          const centre = values.slice();
          const direction = Float64Array.from(values, (_, j) => Math.sin(5 * j + k));
          const numeric = slope((t) => {
            for (let j = 0; j < values.length; j++) values[j] = centre[j] + t * direction[j];
            const result = loss();
            values.set(centre);
            return result;
          });
          const analytic = direction.reduce((s, d, j) => s + d * grads[k][j], 0);
          const allowed = 1e-6 * Math.max(Math.abs(analytic), Math.abs(numeric)) + 1e-9;
          assert.ok(Math.abs(analytic - numeric) <= allowed, `${path}: gradient ${analytic}, difference ${numeric}`);
        });
      }));

    for (const [compute, tolerance] of [
      ['f32', 3e-5],
      ['bf16', 4e-2],
    ] as const)
      test(`${name}: the CPU against the reference (${compute})`, () => {
        const options = { batch: 3, length: 11, segmented: true, compute };
        const [want, got] = [ref, cpu].map((device) =>
          scope(() => {
            const { loss, grads } = stepOn(device, spec, options).run();
            return [loss, ...grads].map((t) => Float64Array.from(valuesOf(t)));
          }),
        );
        want.forEach((w, k) => {
          const norm = Math.hypot(...w) + 1e-6;
          const error = Math.hypot(...w.map((x, j) => x - got[k][j]));
          assert.ok(error <= tolerance * norm, `tensor ${k}: relative error ${error / norm}`);
        });
      });
  }
});

describe('hashes', () => {
  const layer = slotLayer(cpu, 'attention', { kind: 'lsh', heads: 2, headWidth: 8, chunk: 8 }, { width: 16 });
  const x = normalTensor(cpu, 'layer', [1, 64, 16]);
  const residual = normalTensor(cpu, 'residual', [1, 64, 16]);
  /** The output, and which chunk each token went to. */
  const pass = (context: Parameters<typeof forwardContext>[0], input = x) =>
    scope(() => {
      const taps = new Map<string, Tensor>();
      const y = noGrad(() => layer.mixer.forward(layer.params, input, residual, forwardContext({ ...context, taps })));
      return { y: [...y.dataSync()], place: [...taps.get('blocks.0.attention.chunks')!.dataSync()] };
    });
  const plain = { device: cpu, compute: 'f32' } as const;

  test('are drawn anew for every training step, and stay outside training', () => {
    const random = new RandomState(cpu, 3);
    const at = (step: number) => {
      random.setStep(step);
      return pass({ ...plain, training: true, random }).place;
    };
    assert.deepEqual(at(1), at(1));
    assert.notDeepEqual(at(1), at(2));
    assert.deepEqual(pass(plain), pass(plain));
    random.tensor.dispose();
  });

  test('are repeated by a second pass over inputs that were rebuilt with rounding', () => {
    const choices = new Choices();
    const noisy = scope(() =>
      Tensor.from(
        cpu,
        [...x.dataSync()].map((v, k) => v + 0.3 * Math.sin(k)),
        [1, 64, 16],
      ).keep(),
    );
    scope(() => {
      const run = (input: Tensor): number[] => {
        const taps = new Map<string, Tensor>();
        layer.mixer.forward(layer.params, input, residual, forwardContext({ ...plain, taps, choices }));
        return [...taps.get('blocks.0.attention.chunks')!.dataSync()];
      };
      const first = run(x);
      choices.rewind();
      assert.deepEqual(run(noisy), first);
      assert.notDeepEqual(pass(plain, noisy).place, first);
    });
    noisy.dispose();
  });

  test('a captured step replays to what it gave, hashing new inputs', async () => {
    const input = scope(() => Tensor.from(cpu, [...x.dataSync()], [1, 64, 16]).keep());
    const parameter = Object.values(layer.params)[0] as Tensor;
    const step = () => {
      const y = layer.mixer.forward(layer.params, input, residual, forwardContext(plain));
      return { y, grad: gradients(sum(y), [parameter])[0] };
    };
    const { result, run, dispose } = capture(cpu, step);
    const values = () => [result.y, result.grad].map((t) => [...t.dataSync()]);
    const first = values();
    input.write(normalTensor(cpu, 'another', [1, 64, 16]).dataSync());
    await run();
    assert.notDeepEqual(values(), first);
    assert.deepEqual(
      values(),
      scope(() => Object.values(step()).map((t) => [...t.dataSync()])),
    );
    input.write(x.dataSync());
    await run();
    assert.deepEqual(values(), first);
    dispose();
    input.dispose();
  });
});
