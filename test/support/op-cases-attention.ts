// Cases for attention (apart and packed; masks, windows, segments, biases, grouped heads) and rotary positions.
import type { DType } from '../../src/backend/dtype.ts';
import type { AttentionOptions, Tensor } from '../../src/tensor/index.ts';
import * as T from '../../src/tensor/index.ts';
import { Rng } from './kernel-cases/build.ts';
import {
  type CaseInput,
  constant,
  FLOATS,
  float,
  get,
  type Nd,
  nd,
  normals,
  type OpCase,
  opCase,
} from './op-cases-build.ts';

interface Setup {
  readonly b: number;
  readonly tq: number;
  readonly tk: number;
  readonly h: number;
  readonly hkv: number;
  readonly d: number;
  readonly dtype: DType;
  readonly causal: boolean;
  readonly window: number;
  readonly bias: 'none' | 'relative' | 'full';
  readonly segments: boolean;
  /** Prefix-LM: how far a query sees ahead; and keys hidden from all but their own position. */
  readonly visible?: boolean;
  readonly keep?: boolean;
  readonly scale?: number;
  readonly large: boolean;
}

export function attentionCases(rng: Rng): OpCase[] {
  const base = { b: 1, tq: 5, tk: 5, h: 2, hkv: 2, d: 4, dtype: 'f32', causal: true, window: 0, bias: 'none' } as const;
  const plain: Setup = { ...base, segments: false, large: false };
  const fixed: Setup[] = [
    plain,
    { ...plain, tq: 1, tk: 1, h: 1, hkv: 1, d: 1 },
    { ...plain, tq: 1, tk: 6, hkv: 1 },
    { ...plain, tq: 3, tk: 6, bias: 'relative' },
    { ...plain, tq: 6, tk: 3 }, // the first queries see no key
    { ...plain, causal: false, window: 2 },
    { ...plain, b: 2, h: 4, hkv: 2, segments: true, bias: 'full' },
    { ...plain, b: 0 },
    { ...plain, tq: 4, tk: 4, dtype: 'bf16', window: 2, bias: 'relative', segments: true },
  ];
  const drawn = Array.from({ length: 14 }, (): Setup => {
    const hkv = rng.int(1, 2);
    const tk = rng.int(1, 6);
    return {
      b: rng.int(1, 2),
      tq: rng.chance(0.5) ? tk : rng.int(1, 6),
      tk,
      h: hkv * rng.int(1, 3),
      hkv,
      d: rng.int(1, 5),
      dtype: rng.pick(FLOATS),
      causal: rng.chance(0.6),
      window: rng.chance(0.4) ? rng.int(1, 4) : 0,
      bias: rng.pick(['none', 'relative', 'full']),
      segments: rng.chance(0.4),
      scale: rng.chance(0.3) ? rng.uniform(0.2, 2) : undefined,
      large: false,
    };
  });
  const large: Setup[] = FLOATS.flatMap((dtype) => [
    { ...plain, b: 2, tq: 70, tk: 70, h: 4, hkv: 2, d: 32, dtype, large: true },
    { ...plain, tq: 67, tk: 131, d: 24, dtype, window: 40, bias: 'relative' as const, segments: true, large: true },
    { ...plain, tq: 50, tk: 90, d: 20, dtype, causal: false, bias: 'full' as const, large: true },
  ]);
  const masked: Setup[] = [
    { ...plain, b: 2, visible: true },
    { ...plain, b: 2, tq: 6, tk: 6, keep: true, segments: true },
    { ...plain, b: 2, tq: 4, tk: 6, visible: true, keep: true, bias: 'full' },
    { ...plain, tq: 6, tk: 6, visible: true, keep: true, window: 3, segments: true, bias: 'relative' },
    { ...plain, b: 2, tq: 90, tk: 90, h: 4, d: 16, visible: true, keep: true, segments: true, large: true },
    { ...plain, b: 2, tq: 140, tk: 140, d: 16, dtype: 'bf16', visible: true, keep: true, large: true },
  ];
  const apart = [...fixed, ...drawn, ...large].map((s) => apartCase(rng, s));
  const packed = [...fixed, ...drawn, ...large].filter((s) => s.tq === s.tk).map((s) => packedCase(rng, s));
  const own = new Rng('masks');
  const hidden = masked.flatMap((s) => [apartCase(own, s), ...(s.tq === s.tk ? [packedCase(own, s)] : [])]);
  return [...apart, ...packed, ...ropeCases(rng), ...hidden];
}

/** Attention by its definition. Heads of q, k, v are read through `at`, so that packed tensors can share this. */
function naive(s: Setup, q: Read, k: Read, v: Read, x: Extras<Nd>): Nd {
  const { bias, segQ, segK, visible, keep } = x;
  const group = s.h / s.hkv;
  const scale = s.scale ?? 1 / Math.sqrt(s.d);
  const weights = new Map<string, number[]>();
  const row = (b: number, i: number, h: number): number[] => {
    const key = `${b},${i},${h}`;
    const known = weights.get(key);
    if (known) return known;
    const position = i + s.tk - s.tq;
    const logits = Array.from({ length: s.tk }, (_, j) => {
      const distance = position - j;
      const ahead = visible ? j > Math.max(position, get(visible, [b, i])) : distance < 0;
      const hidden =
        (s.causal && ahead) ||
        (keep && get(keep, [b, j]) === 0 && distance !== 0) ||
        (s.window > 0 && (s.causal ? distance : Math.abs(distance)) >= s.window) ||
        (segQ && segK && get(segQ, [b, i]) !== get(segK, [b, j]));
      if (hidden) return Number.NEGATIVE_INFINITY;
      let dot = 0;
      for (let c = 0; c < s.d; c++) dot += q(b, i, h, c) * k(b, j, Math.floor(h / group), c);
      const extra = !bias ? 0 : get(bias, s.bias === 'full' ? [h, i, j] : [h, j - position + s.tk - 1]);
      return scale * dot + extra;
    });
    const most = Math.max(...logits);
    const powers = logits.map((x) => (most === Number.NEGATIVE_INFINITY ? 0 : Math.exp(x - most)));
    const total = powers.reduce((x, y) => x + y, 0);
    const made = powers.map((x) => (total === 0 ? 0 : x / total));
    weights.set(key, made);
    return made;
  };
  return nd([s.b, s.tq, s.h, s.d], ([b, i, h, c]) =>
    row(b, i, h).reduce((sum, p, j) => sum + (p === 0 ? 0 : p * v(b, j, Math.floor(h / group), c)), 0),
  );
}
type Read = (b: number, t: number, head: number, c: number) => number;

const note = (s: Setup, what: string): string =>
  `${what}${s.causal ? ' causal' : ''}${s.window ? ` window ${s.window}` : ''}${s.segments ? ' segments' : ''}${s.visible ? ' visible' : ''}${s.keep ? ' keep' : ''} bias ${s.bias}`;

/** Bias and masks, in the order bias?, segQ?, segK?, visible?, keep?. */
function extras(rng: Rng, s: Setup, both: boolean): CaseInput[] {
  const list: CaseInput[] = [];
  if (s.bias === 'relative') list.push(float([s.h, s.tq + s.tk - 1], 'f32', normals(rng)));
  if (s.bias === 'full') list.push(float([s.h, s.tq, s.tk], 'f32', normals(rng)));
  // Non-decreasing, as packed documents are.
  const ids = (t: number): CaseInput => constant([s.b, t], 'i32', (k) => Math.floor(((k % t) * 3) / Math.max(1, t)));
  if (s.segments) list.push(ids(s.tq), ...(both ? [ids(s.tk)] : []));
  if (s.visible) list.push(constant([s.b, s.tq], 'i32', () => rng.int(-1, s.tk - 1)));
  if (s.keep) list.push(constant([s.b, s.tk], 'i32', () => rng.int(0, 2)));
  return list;
}

interface Extras<X> {
  readonly bias: X | null;
  readonly segQ: X | null;
  readonly segK: X | null;
  readonly visible: X | null;
  readonly keep: X | null;
}

/** What `extras` made, by name. Packed cases have one list of segments for queries and keys. */
function sorted<X>(s: Setup, rest: readonly X[], both: boolean): Extras<X> {
  const queue = [...rest];
  const take = (wanted: boolean | undefined): X | null => (wanted ? queue.shift()! : null);
  const bias = take(s.bias !== 'none');
  const segQ = take(s.segments);
  return { bias, segQ, segK: both ? take(s.segments) : segQ, visible: take(s.visible), keep: take(s.keep) };
}

function optionsOf(s: Setup, rest: readonly Tensor[], both: boolean): AttentionOptions {
  const { bias, segQ, segK, visible, keep } = sorted(s, rest, both);
  const { causal, window, scale } = s;
  return { causal, window, scale, bias, segments: segQ, keySegments: segK, visible, keep };
}

/** A query that sees one key has no gradient: what remains of dout.v - dout.out is the rounding of stored outputs. */
const slack = (s: Setup): number => (s.dtype === 'bf16' ? 1e-2 : 1e-6);

function apartCase(rng: Rng, s: Setup): OpCase {
  const inputs = [
    float([s.b, s.tq, s.h, s.d], s.dtype, normals(rng)),
    float([s.b, s.tk, s.hkv, s.d], s.dtype, normals(rng)),
    float([s.b, s.tk, s.hkv, s.d], s.dtype, normals(rng)),
    ...extras(rng, s, true),
  ];
  const run = ([q, k, v, ...rest]: readonly Tensor[]): Tensor[] => [T.attention(q, k, v, optionsOf(s, rest, true))];
  const expect = ([q, k, v, ...rest]: readonly Nd[]): Nd[] => {
    const read =
      (x: Nd): Read =>
      (...index) =>
        get(x, index);
    return [naive(s, read(q), read(k), read(v), sorted(s, rest, true))];
  };
  return opCase('attention', inputs, run, { expect, large: s.large, slack: slack(s), note: note(s, 'apart') });
}

function packedCase(rng: Rng, s: Setup): OpCase {
  const inputs = [float([s.b, s.tq, s.h + 2 * s.hkv, s.d], s.dtype, normals(rng)), ...extras(rng, s, false)];
  const run = ([qkv, ...rest]: readonly Tensor[]): Tensor[] => [
    T.attentionPacked(qkv, s.h, s.hkv, optionsOf(s, rest, false)),
  ];
  const expect = ([qkv, ...rest]: readonly Nd[]): Nd[] => {
    const read =
      (skip: number): Read =>
      (b, t, head, c) =>
        get(qkv, [b, t, head + skip, c]);
    return [naive(s, read(0), read(s.h), read(s.h + s.hkv), sorted(s, rest, false))];
  };
  return opCase('attention', inputs, run, { expect, large: s.large, slack: slack(s), note: note(s, 'packed') });
}

function ropeCases(rng: Rng): OpCase[] {
  const cases: OpCase[] = [];
  for (const [shape, rotated, half, max, interleaved, positioned] of [
    [[1, 4, 2, 4], 2, 2, 4, false, false],
    [[2, 3, 3, 6], 2, 2, 8, false, true],
    [[2, 3, 2, 5], 1, 2, 5, true, false],
    [[1, 1, 1, 2], 1, 1, 1, true, false],
    [[1, 5, 4, 4], 0, 2, 5, false, false],
    [[2, 0, 1, 4], 1, 2, 4, false, false],
    [[2, 33, 4, 32], 3, 12, 64, false, true],
  ] as [number[], number, number, number, boolean, boolean][])
    for (const dtype of FLOATS) {
      const [b, t] = shape;
      const angles = Array.from({ length: max * half }, () => rng.uniform(-3, 3));
      const inputs = [
        float(shape, dtype, normals(rng)),
        constant([max, half], 'f32', (k) => Math.cos(angles[k])),
        constant([max, half], 'f32', (k) => Math.sin(angles[k])),
        ...(positioned ? [constant([b, t], 'i32', () => rng.int(0, max - 1))] : []),
      ];
      const expect = ([x, cos, sin, pos]: readonly Nd[]): Nd[] => [
        nd(shape, ([batch, at, head, c]) => {
          const own = get(x, [batch, at, head, c]);
          if (head >= rotated || c >= 2 * half) return own;
          const pair = interleaved ? c >> 1 : c % half;
          const second = interleaved ? c % 2 === 1 : c >= half;
          const other = get(x, [batch, at, head, interleaved ? c ^ 1 : (c + half) % (2 * half)]);
          const position = pos ? get(pos, [batch, at]) : at;
          const [cs, sn] = [cos.data[position * half + pair], sin.data[position * half + pair]];
          return second ? own * cs + other * sn : own * cs - other * sn;
        }),
      ];
      cases.push(
        opCase(
          'rope',
          inputs,
          ([x, cos, sin, pos]) => [T.rope(x, cos, sin, { rotated, interleaved, positions: pos })],
          {
            expect,
            large: t > 10,
            note: `${rotated} heads${interleaved ? ' interleaved' : ''}`,
          },
        ),
      );
    }
  return cases;
}
