// Cases for the factored dense layer, its loss, and the convolution over time and modules.
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import { constant, FLOATS, float, get, type Nd, nd, normals, type OpCase, opCase } from './op-cases-build.ts';

export function factoredCases(rng: Rng): OpCase[] {
  return [...linears(rng), ...losses(rng), ...convolutions(rng)];
}

function linears(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [lead, d, S, M, large] of [
    [[3], 4, 2, 3, false],
    [[2, 2], 3, 4, 1, false],
    [[1], 1, 1, 1, false],
    [[0], 3, 2, 2, false],
    [[70], 40, 4, 17, true],
  ] as [number[], number, number, number, boolean][])
    for (const dtype of FLOATS)
      for (const compute of ['f32', 'bf16'] as const)
        for (const biased of [false, true]) {
          const expect = ([x, D, E, bias]: readonly Nd[]): Nd[] => [
            nd([...lead, S * M], (index) => {
              const o = index[lead.length];
              let sum = biased ? get(bias, [o]) : 0;
              for (let i = 0; i < d; i++)
                sum += get(x, [...index.slice(0, -1), i]) * get(D, [Math.floor(o / M), i]) * get(E, [o % M, i]);
              return sum;
            }),
          ];
          cases.push(
            opCase(
              'factored_linear',
              [
                float([...lead, d], dtype, normals(rng)),
                float([S, d], 'f32', normals(rng, 0.5)),
                float([M, d], 'f32', normals(rng)),
                ...(biased ? [float([S * M], 'f32', normals(rng))] : []),
              ],
              ([x, D, E, bias]) => [T.factoredLinear(x, D, E, { bias: bias ?? null, compute })],
              { expect, large, note: compute, bf16Products: compute === 'bf16' },
            ),
          );
        }
  return cases;
}

function losses(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [rows, d, S, M, vocab, zLoss, large] of [
    [4, 3, 2, 3, 6, 0, false],
    [3, 4, 3, 2, 5, 0.02, false],
    [2, 2, 1, 4, 4, 0, false],
    [45, 24, 4, 40, 151, 1e-3, true],
  ] as [number, number, number, number, number, number, boolean][])
    for (const compute of ['f32', 'bf16'] as const) {
      const logitScale = 0.7;
      const expect = ([h, D, E, target, scale]: readonly Nd[]): Nd[] => {
        const each = Array.from({ length: rows }, (_, r) => {
          if (target.data[r] < 0) return 0;
          const x = Array.from({ length: vocab }, (_, o) => {
            let sum = 0;
            for (let i = 0; i < d; i++) sum += get(h, [r, i]) * get(D, [Math.floor(o / M), i]) * get(E, [o % M, i]);
            return logitScale * sum;
          });
          const lse = Math.log(x.reduce((s, v) => s + Math.exp(v), 0));
          return lse - x[target.data[r]] + zLoss * lse * lse;
        });
        return [
          { shape: [], data: [each.reduce((s, l, r) => s + l * scale.data[r], 0)] },
          { shape: [rows], data: each },
        ];
      };
      const inputs = [
        float([rows, d], 'f32', normals(rng)),
        float([S, d], 'f32', normals(rng, 0.5)),
        float([M, d], 'f32', normals(rng)),
        constant([rows], 'i32', (k) => (k % 3 === 2 ? -1 : rng.int(0, vocab - 1))),
        constant([rows], 'f32', () => rng.uniform(0.2, 1)),
      ];
      const run = ([h, D, E, target, scale]: readonly T.Tensor[]) =>
        T.factoredCrossEntropy(h, D, E, target, scale, { vocab, zLoss, logitScale, compute });
      const extra = { large, note: `V ${vocab} z ${zLoss} ${compute}`, bf16Products: compute === 'bf16' };
      cases.push(
        opCase('factored_cross_entropy', inputs, (x) => [run(x).loss], {
          ...extra,
          expect: (x) => expect(x).slice(0, 1),
        }),
        // The rows themselves carry no gradient.
        opCase(
          'factored_cross_entropy',
          inputs.map((x) => ({ ...x, grad: false })),
          (x) => Object.values(run(x)),
          { ...extra, expect },
        ),
      );
    }
  return cases;
}

function convolutions(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [B, t, S, C, O, K, J, large] of [
    [2, 4, 3, 2, 3, 3, 3, false],
    [1, 5, 2, 2, 2, 3, 1, false],
    [1, 2, 1, 1, 1, 3, 3, false],
    [0, 3, 2, 1, 2, 2, 1, false],
    [2, 20, 4, 8, 8, 3, 3, true],
  ] as [number, number, number, number, number, number, number, boolean][])
    for (const dtype of FLOATS)
      for (const segmented of [false, true]) {
        const segment = (at: number): number => Math.floor(at / 2);
        const expect = ([x, w, bias]: readonly Nd[]): Nd[] => [
          nd([B, t, S, O], ([b, at, s, o]) => {
            let sum = get(bias, [o]);
            for (let k = 0; k < K; k++)
              for (let j = 0; j < J; j++) {
                const [from, m] = [at + k - K + 1, s + j - (J - 1) / 2];
                if (from < 0 || m < 0 || m >= S || (segmented && segment(from) !== segment(at))) continue;
                for (let c = 0; c < C; c++) sum += get(x, [b, from, m, c]) * get(w, [o, k, j, c]);
              }
            return sum;
          }),
        ];
        cases.push(
          opCase(
            'module_conv',
            [
              float([B, t, S, C], dtype, normals(rng)),
              float([O, K, J, C], 'f32', normals(rng)),
              float([O], 'f32', normals(rng)),
              ...(segmented ? [constant([B, t], 'i32', (k) => segment(k % t))] : []),
            ],
            ([x, w, bias, segments]) => [T.moduleConv(x, w, bias, { segments: segments ?? null })],
            { expect, large, note: segmented ? 'segments' : '' },
          ),
        );
      }
  return cases;
}
