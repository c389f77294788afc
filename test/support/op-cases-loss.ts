// Cases for losses: cross-entropy of logits, and fused with the output projection.
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import { constant, FLOATS, float, get, integers, type Nd, nd, normals, type OpCase, opCase } from './op-cases-build.ts';

export function lossCases(rng: Rng): OpCase[] {
  return [...onLogits(rng), ...fused(rng), ...taught(rng)];
}

interface Terms {
  readonly smoothing: number;
  readonly zLoss: number;
  readonly ignore: number;
}

/** Label-smoothed cross-entropy with z-loss of one row. */
function rowLoss(x: readonly number[], target: number, { smoothing, zLoss, ignore }: Terms): number {
  if (target === ignore) return 0;
  const lse = Math.log(x.reduce((s, v) => s + Math.exp(v), 0));
  const mean = x.reduce((a, b) => a + b, 0) / x.length;
  return lse - (1 - smoothing) * x[target] - smoothing * mean + zLoss * lse * lse;
}

function onLogits(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [rows, v, options, large] of [
    [[4], 5, {}, false],
    [[2, 3], 7, { smoothing: 0.1 }, false],
    [[3], 4, { zLoss: 0.02 }, false],
    [[5], 3, { smoothing: 0.3, zLoss: 0.1, ignore: 2 }, false],
    [[], 6, {}, false],
    [[2], 1, {}, false],
    [[0], 4, {}, false],
    [[45], 301, { smoothing: 0.1, zLoss: 1e-3 }, true],
  ] as [number[], number, { smoothing?: number; zLoss?: number; ignore?: number }, boolean][])
    for (const dtype of FLOATS) {
      const terms = { smoothing: 0, zLoss: 0, ignore: T.IGNORE, ...options };
      // Every third row or so is ignored.
      const target = constant(rows, 'i32', () => (rng.chance(0.3) ? terms.ignore : rng.int(0, v - 1)));
      cases.push(
        opCase(
          'cross_entropy',
          [float([...rows, v], dtype, normals(rng)), target],
          ([x, t]) => [T.crossEntropy(x, t, options)],
          {
            expect: ([x, t]) => [
              nd(rows, (index) =>
                rowLoss(
                  Array.from({ length: v }, (_, j) => get(x, [...index, j])),
                  get(t, index),
                  terms,
                ),
              ),
            ],
            large,
            note: JSON.stringify(options),
          },
        ),
      );
    }
  return cases;
}

function fused(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [rows, d, v, options, large] of [
    [[4], 3, 5, {}, false],
    [[2, 3], 4, 6, { zLoss: 0.05, logitScale: 0.7 }, false],
    [[3], 2, 4, { ignore: 1 }, false],
    [[1], 1, 1, {}, false],
    [[4], 3, 5, { compute: 'bf16' }, false],
    [[4, 75], 48, 130, { zLoss: 1e-3 }, true],
    [[300], 64, 257, { compute: 'bf16' }, true],
  ] as [number[], number, number, T.LinearLossOptions, boolean][])
    for (const [dh, dw] of [
      ['f32', 'f32'],
      ['bf16', 'f32'],
      ['bf16', 'bf16'],
    ] as const) {
      const { zLoss = 0, logitScale = 1, ignore = T.IGNORE } = options;
      const inputs = [
        float([...rows, d], dh, normals(rng)),
        float([v, d], dw, normals(rng)),
        constant(rows, 'i32', (k) => (k % 4 === 3 ? ignore : rng.int(0, v - 1))),
        float(rows, 'f32', () => rng.uniform(0.1, 1)),
      ];
      const each = ([h, w, t]: readonly Nd[]): Nd =>
        nd(rows, (index) => {
          const logits = Array.from({ length: v }, (_, j) => {
            let dot = 0;
            for (let c = 0; c < d; c++) dot += get(h, [...index, c]) * get(w, [j, c]);
            return logitScale * dot;
          });
          return rowLoss(logits, get(t, index), { smoothing: 0, zLoss, ignore });
        });
      const extra = { large, note: JSON.stringify(options), bf16Products: options.compute === 'bf16' };
      cases.push(
        opCase('linear_cross_entropy', inputs, ([h, w, t, s]) => [T.linearCrossEntropy(h, w, t, s, options).loss], {
          ...extra,
          expect: (x) => {
            const loss = each(x);
            const total = Array.from(loss.data).reduce((sum, l, k) => sum + l * x[3].data[k], 0);
            return [{ shape: [], data: [total] }];
          },
        }),
        // The losses of the rows, as evaluation reads them, and as something else may weigh them.
        opCase(
          'linear_cross_entropy',
          inputs.map((x, k) => ({ ...x, grad: k < 2 && x.grad !== false })),
          ([h, w, t, s]) => [T.linearCrossEntropy(h, w, t, s, options).rows],
          { ...extra, expect: (x) => [each(x)], note: `${extra.note} rows` },
        ),
      );
    }
  cases.push(
    // Only h, or only w, wants a gradient.
    ...[0, 1].map((k) => {
      const inputs = [
        float([3, 2], 'f32', normals(rng)),
        float([4, 2], 'f32', normals(rng)),
        constant([3], 'i32', integers(rng, 0, 3)),
        constant([3], 'f32', () => 0.5),
      ].map((x, j) => ({ ...x, grad: j === k }));
      return opCase('linear_cross_entropy', inputs, ([h, w, t, s]) => [T.linearCrossEntropy(h, w, t, s).loss], {
        note: `gradient of input ${k} only`,
      });
    }),
  );
  return cases;
}

/** Against a teacher; the gradient is an output, so it is compared with the formula. */
function taught(rng: Rng): OpCase[] {
  const softmax = (x: Nd, r: number, n: number, at: number): number[] => {
    const e = Array.from({ length: n }, (_, j) => Math.exp(get(x, [r, j]) / at));
    const total = e.reduce((a, b) => a + b);
    return e.map((v) => v / total);
  };
  return [
    { rows: 5, v: 7, vt: 9, options: { hard: 0.4, soft: 0.6, temperature: 2, zLoss: 0.01, shared: 6 } },
    { rows: 3, v: 4, vt: 4, options: { hard: 0, soft: 1, temperature: 1 } },
  ].map(({ rows, v, vt, options }) => {
    const { hard, soft, temperature, zLoss = 0, shared = Math.min(v, vt) } = options as T.DistilOptions;
    const terms = (s: Nd, t: Nd, r: number) => {
      const [own, other] = [softmax(s, r, shared, temperature), softmax(t, r, shared, temperature)];
      const lse = Math.log(Array.from({ length: v }, (_, j) => Math.exp(get(s, [r, j]))).reduce((a, b) => a + b));
      return { own, other, lse };
    };
    const inputs = [
      constant([rows, v], 'f32', normals(rng)),
      constant([rows, vt], 'f32', normals(rng)),
      constant([rows], 'i32', (k) => (k === 1 ? T.IGNORE : rng.int(0, v - 1))),
      constant([rows], 'f32', () => rng.uniform(0.1, 1)),
    ];
    return opCase(
      'distil_loss',
      inputs,
      ([s, t, target, scale]) => Object.values(T.distilLoss(s, t, target, scale, options)),
      {
        expect: ([s, t, target, scale]) => [
          nd([rows], ([r]) => {
            const { lse } = terms(s, t, r);
            return get(target, [r]) < 0 ? 0 : lse - get(s, [r, get(target, [r])]) + zLoss * lse * lse;
          }),
          nd([rows], ([r]) => {
            const { own, other } = terms(s, t, r);
            return get(target, [r]) < 0 ? 0 : other.reduce((a, p, j) => a + p * Math.log(p / own[j]), 0);
          }),
          nd([rows, v], ([r, j]) => {
            const { own, other, lse } = terms(s, t, r);
            if (get(target, [r]) < 0) return 0;
            const given = (1 + 2 * zLoss * lse) * Math.exp(get(s, [r, j]) - lse) - Number(get(target, [r]) === j);
            return get(scale, [r]) * (hard * given + (j < shared ? soft * temperature * (own[j] - other[j]) : 0));
          }),
        ],
        note: JSON.stringify(options),
      },
    );
  });
}
