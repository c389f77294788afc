// Cases for random numbers.
import type { Device } from '../../src/backend/device.ts';
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import { FLOATS, float, normals, type OpCase, opCase } from './op-cases-build.ts';

const states = new WeakMap<Device, T.RandomState>();
/** The random state of a device: made once, since captured steps may not write from the host. */
export function randomState(device: Device): T.RandomState {
  let state = states.get(device);
  if (!state) {
    state = new T.RandomState(device, 0x1234567890abn);
    state.setStep(5);
    states.set(device, state);
  }
  return state;
}

/** Random draws and dropout. */
export function randomCases(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [shape, large] of [
    [[7], false],
    [[2, 3], false],
    [[], false],
    [[0], false],
    [[41, 133], true],
  ] as [number[], boolean][])
    for (const dtype of FLOATS) {
      const stream = rng.int(0, 2 ** 31 - 1);
      const note = `${dtype}[${shape}] stream ${stream}`;
      cases.push(
        opCase('uniform', [], (_, d) => [T.uniform(randomState(d), shape, stream, -2, 3, dtype)], { note, large }),
        opCase('normal', [], (_, d) => [T.normal(randomState(d), shape, stream, 0.5, 2, dtype)], { note, large }),
      );
      for (const p of [0.1, 0.7, 0])
        cases.push(
          opCase(
            'dropout',
            [float(shape, dtype, normals(rng))],
            ([x], d) => [T.dropout(x, randomState(d), p, stream)],
            {
              note: `p ${p}`,
              large,
            },
          ),
        );
    }
  return cases;
}
