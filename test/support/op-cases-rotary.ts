// Cases for rotary positions with tables of their own for queries and keys.
import type { DType } from '../../src/backend/dtype.ts';
import * as T from '../../src/tensor/index.ts';
import type { Rng } from './kernel-cases/build.ts';
import { constant, FLOATS, float, get, integers, type Nd, nd, normals, type OpCase, opCase } from './op-cases-build.ts';

interface Setup {
  readonly shape: readonly number[];
  readonly heads: number;
  readonly kvHeads: number;
  readonly half: number;
  readonly interleaved: boolean;
  readonly positions: boolean;
  readonly dtype: DType;
  readonly large?: boolean;
}

export function rotaryCases(rng: Rng): OpCase[] {
  const base = { shape: [2, 3, 5, 4], heads: 2, kvHeads: 1, half: 2, interleaved: false, positions: false };
  const setups: Omit<Setup, 'dtype'>[] = [
    base,
    { ...base, interleaved: true, positions: true },
    { ...base, shape: [1, 4, 3, 6], kvHeads: 0, half: 2 },
    { ...base, shape: [1, 2, 4, 5], heads: 1, kvHeads: 3, half: 1, positions: true },
    { ...base, shape: [2, 70, 6, 64], heads: 3, kvHeads: 2, half: 32, large: true },
  ];
  return setups.flatMap((s) => FLOATS.map((dtype) => rotaryCase(rng, { ...s, dtype })));
}

function rotaryCase(rng: Rng, s: Setup): OpCase {
  const [b, t] = s.shape;
  const table = () => constant([t + 2, s.half], 'f32', normals(rng));
  const ids = s.positions ? [constant([b, t], 'i32', integers(rng, 0, t + 1))] : [];
  const inputs = [float(s.shape, s.dtype, normals(rng)), table(), table(), table(), table(), ...ids];
  const expect = ([x, qc, qs, kc, ks, pos]: readonly Nd[]): Nd[] => [
    nd(s.shape, ([n, at, head, d]) => {
      const own = head < s.heads ? [qc, qs] : head < s.heads + s.kvHeads ? [kc, ks] : null;
      if (!own || d >= 2 * s.half) return get(x, [n, at, head, d]);
      const second = s.interleaved ? d % 2 === 1 : d >= s.half;
      const pair = s.interleaved ? d >> 1 : d % s.half;
      const other = s.interleaved ? d ^ 1 : (d + s.half) % (2 * s.half);
      const row = pos ? get(pos, [n, at]) : at;
      const [c, sn] = own.map((m) => get(m, [row, pair]));
      return get(x, [n, at, head, d]) * c + (second ? 1 : -1) * get(x, [n, at, head, other]) * sn;
    }),
  ];
  return opCase(
    'rope_pair',
    inputs,
    ([x, qc, qs, kc, ks, pos]) => [
      T.ropePair(x, { cos: qc, sin: qs }, { cos: kc, sin: ks }, { ...s, positions: pos ?? null }),
    ],
    { expect, large: s.large },
  );
}
