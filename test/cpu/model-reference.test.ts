// Whole decoders: gradients against finite differences in float64, and the CPU against the float64 reference.
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import { RefDevice } from '../../src/backend/ref/device.ts';
import { flatten, forwardContext } from '../../src/nn/index.ts';
import { noGrad, RandomState, scope } from '../../src/tensor/index.ts';
import { Rng } from '../support/kernel-cases/build.ts';
import { refValues, slope, valuesOf, withoutRounding } from '../support/ref-values.ts';
import { decoderVariants, smallSpec, stepOn } from '../support/small-models.ts';

const cpu = new CpuDevice();
const ref = new RefDevice();
const { level, levels } = cpu.info();
after(() => cpu.useLevel(level));

const variants = {
  ...decoderVariants,
  'wider, grouped heads': smallSpec({
    width: 48,
    vocab: 67,
    depth: 3,
    attention: { kind: 'full', heads: 6, kvHeads: 2 },
    ffn: { kind: 'glu', hidden: 40 },
  }),
};

describe('gradients of the loss against finite differences', () => {
  for (const [name, spec] of Object.entries(decoderVariants))
    for (const segmented of [false, true])
      test(`${name}${segmented ? ', two documents a row' : ''}`, () =>
        withoutRounding(() => {
          const step = stepOn(ref, spec, { batch: 2, length: 5, segmented });
          const grads = scope(() => step.run().grads.map((g) => Float64Array.from(refValues(g))));
          const params = flatten(step.params);
          const loss = (): number =>
            scope(() =>
              noGrad(
                () =>
                  refValues(
                    step.model.loss(step.params, step.batch, forwardContext({ device: ref, compute: 'f32' })).total,
                  )[0],
              ),
            );
          const rng = new Rng(name);
          params.forEach(({ path, tensor }, k) => {
            const values = refValues(tensor);
            const centre = values.slice();
            const along = (direction: ArrayLike<number>) =>
              slope((t) => {
                for (let j = 0; j < values.length; j++) values[j] = centre[j] + t * direction[j];
                const result = loss();
                values.set(centre);
                return result;
              });
            // One random direction through all of the parameter's elements, and two elements by themselves.
            const directions = [Float64Array.from(values, () => rng.uniform(-1, 1))];
            for (const j of rng.shuffled([...values.keys()]).slice(0, 2))
              directions.push(Float64Array.from(values, (_, i) => +(i === j)));
            for (const direction of directions) {
              const analytic = direction.reduce((s, d, j) => s + d * grads[k][j], 0);
              const numeric = along(direction);
              const allowed = 1e-6 * Math.max(Math.abs(analytic), Math.abs(numeric)) + 1e-9;
              assert.ok(
                Math.abs(analytic - numeric) <= allowed,
                `${path}: gradient ${analytic}, difference ${numeric}`,
              );
            }
          });
        }));
});

describe('the loss', () => {
  for (const [name, spec] of Object.entries(decoderVariants))
    test(`${name}: is the weighted cross-entropy of the logits, plus the z-loss`, () =>
      scope(() => {
        const [B, T, V, zLoss] = [2, 7, spec.vocab, spec.zLoss ?? 0];
        const { model, params, batch } = stepOn(ref, spec, { batch: B, length: T });
        const c = forwardContext({ device: ref, compute: 'f32' });
        const { total, rows } = noGrad(() => model.loss(params, batch, c));
        const logits = refValues(noGrad(() => model.logits(params, model.hidden(params, batch, c), c)));
        const [targets, weights] = [refValues(batch.targets), refValues(batch.weights)];
        let sum = 0;
        for (let k = 0; k < B * T; k++) {
          const row = Array.from(logits.slice(k * V, (k + 1) * V));
          const lse = Math.log(row.reduce((s, x) => s + Math.exp(x), 0));
          const loss = targets[k] < 0 ? 0 : lse - row[targets[k]] + zLoss * lse * lse;
          assert.ok(Math.abs(refValues(rows)[k] - loss) < 1e-12, `row ${k}`);
          sum += weights[k] * loss;
        }
        assert.ok(targets.some((t) => t < 0) && targets.some((t) => t >= 0));
        assert.ok(Math.abs(refValues(total)[0] - sum) < 1e-12);
      }));

  test('has dropout in training only', () =>
    scope(() => {
      const losses = [0, 0.5].map((dropout) => {
        const spec = smallSpec({ dropout, ffn: { kind: 'glu', hidden: 10, dropout } });
        const { model, params, batch } = stepOn(cpu, spec, { batch: 2, length: 8 });
        const loss = (random: RandomState | null): number =>
          model.loss(params, batch, forwardContext({ device: cpu, compute: 'f32', random })).total.item();
        return { plain: loss(null), trained: loss(new RandomState(cpu, 1)) };
      });
      assert.equal(losses[0].plain, losses[1].plain);
      assert.equal(losses[0].plain, losses[0].trained);
      assert.notEqual(losses[1].plain, losses[1].trained);
    }));
});

/** |a - b| / |b| in the Euclidean norm. */
function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let [off, size] = [0, 0];
  for (let k = 0; k < b.length; k++) {
    off += (a[k] - b[k]) ** 2;
    size += b[k] ** 2;
  }
  return Math.sqrt(off / size);
}

describe('loss and gradients on the CPU against the reference', () => {
  // bf16: the reference rounds the operands of products but not what is stored in between, so the two differ by a few
  // roundings of 2^-9 each.
  for (const [name, spec] of Object.entries(variants))
    for (const [compute, lossTolerance, gradTolerance] of [
      ['f32', 1e-6, 2e-5],
      ['bf16', 2e-3, 3e-2],
    ] as const)
      test(`${name}, ${compute}`, () => {
        const options = { batch: 3, length: 13, segmented: true, compute };
        const want = scope(() => {
          const { loss, grads } = stepOn(ref, spec, options).run();
          return [loss, ...grads].map(valuesOf);
        });
        for (const each of levels) {
          cpu.useLevel(each);
          scope(() => {
            const step = stepOn(cpu, spec, options);
            const { loss, grads } = step.run();
            const off = distance(valuesOf(loss), want[0]);
            assert.ok(off <= lossTolerance, `${each}: loss off by ${off}`);
            grads.forEach((g, k) => {
              const d = distance(valuesOf(g), want[k + 1]);
              assert.ok(d <= gradTolerance, `${each}: gradient of ${step.names[k]} off by ${d}`);
            });
          });
        }
      });
});
