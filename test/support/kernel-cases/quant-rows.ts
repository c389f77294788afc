// Cases of products whose rows are made on the way: scaled, or the taps of a convolution over modules.
import { floatDtype, gaussian, makeCase, output, tolerance } from './build.ts';
import { packed } from './quant.ts';
import type { CaseGenerator, KernelCase } from './types.ts';

const FORMATS = [0, 1, 2, 3];
const products = (K: number) => tolerance(3e-6, 1e-5 * Math.sqrt(K + 1), 3e-6);

const quantFactored: CaseGenerator = (_, rng) => {
  const one = (R: number, S: number, M: number, d: number, format: number): KernelCase => {
    // Products of two bf16 numbers are exact in float32; of others they round, which every implementation does alike.
    const compute = rng.int(0, 1);
    return makeCase('quant_factored', {
      p: [
        output(floatDtype(rng), R * S * M),
        gaussian(rng, floatDtype(rng), R * d),
        packed(rng, 1, M, d, format),
        gaussian(rng, floatDtype(rng), S * d),
        rng.chance(0.5) ? gaussian(rng, floatDtype(rng), S * M) : null,
      ],
      i: [R, S, M, d, format, compute],
      f: [1],
      tolerance: products(d),
    });
  };
  return FORMATS.flatMap((format) => [
    one(1, 4, 16, 64, format),
    one(1, 16, 64, 1024, format),
    one(3, 5, 17, 70, format),
    one(9, 2, 33, 550, format),
    one(0, 3, 16, 64, format),
    one(130, 4, 18, 33, format), // more rows than are packed at a time
  ]);
};

const quantModuleConv: CaseGenerator = (_, rng) => {
  const one = (R: number, S: number, M: number, reach: number, J: readonly number[], format: number): KernelCase =>
    makeCase('quant_module_conv', {
      p: [
        output(floatDtype(rng), R * J.length * S * M),
        gaussian(rng, floatDtype(rng), R * reach * S * M),
        ...J.flatMap((j) => [
          packed(rng, 1, M, reach * j * M, format),
          rng.chance(0.5) ? gaussian(rng, 'f32', M) : null,
        ]),
      ],
      i: [R, S, M, reach, format, rng.int(0, 1), J.length, ...J],
      tolerance: products(reach * J[0] * M),
    });
  return FORMATS.flatMap((format) => [
    one(1, 4, 32, 3, [3, 3, 1], format), // modules that end with a group
    one(2, 5, 64, 3, [3, 1], format),
    one(3, 4, 16, 3, [3, 3, 1], format), // and others
    one(2, 3, 40, 2, [1], format),
    one(1, 2, 33, 1, [5, 3, 3], format),
    one(0, 2, 32, 3, [3], format),
    one(130, 4, 16, 2, [3, 1], format), // more rows than are packed at a time
  ]);
};

export const quantRowCases: Record<string, CaseGenerator> = {
  quant_factored: quantFactored,
  quant_module_conv: quantModuleConv,
};
