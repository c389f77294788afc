// Cases of attention to chosen blocks and of the choice. Backward passes get the out and lse of the reference.
import type { ElementType } from '../../../src/backend/dtype.ts';
import { blockAttention as ref } from '../../../src/backend/ref/block-attention.ts';
import { blockParts } from '../../../src/backend/ref/block-parts.ts';
import { logSumExp } from '../../../src/backend/ref/common.ts';
import { gaussian, input, makeCase, output, type Rng, tolerance } from './build.ts';
import type { CaseGenerator, KernelCase, TensorSpec } from './types.ts';

interface Problem {
  readonly dtype: ElementType;
  readonly B: number;
  readonly T: number;
  readonly H: number;
  readonly Hkv: number;
  readonly D: number;
  readonly size: number;
  readonly n: number;
  readonly segments: boolean;
}

const plain = { B: 1, H: 2, Hkv: 1, D: 16, size: 16, n: 3, segments: false };

const call = (
  kernel: (typeof ref)[string],
  p: (TensorSpec | Float64Array | Int32Array | null)[],
  i: number[],
  f: number[],
) => {
  const arrays = p.map((x) => (x === null || x instanceof Float64Array || x instanceof Int32Array ? x : x.data));
  kernel({ p: arrays, m: arrays, o: arrays.map(() => 0), t: [], i, f });
};

/** Segments as packed rows have them, each a run of tokens. */
function segmentsOf(rng: Rng, B: number, T: number): TensorSpec {
  let current = 0;
  return input('i32', B * T, (k) => {
    if (k % T === 0) current = 1;
    else if (rng.chance(0.06)) current++;
    return current;
  });
}

/** Lists in ascending order: mostly with the query's own block, some empty, some of all blocks. */
function lists(rng: Rng, { B, T, Hkv, size, n }: Problem): TensorSpec {
  const all: number[] = [];
  for (let row = 0; row < B * T * Hkv; row++) {
    const own = Math.floor((Math.floor(row / Hkv) % T) / size);
    const others = rng.shuffled(Array.from({ length: own }, (_, j) => j));
    const count = rng.chance(0.1) ? rng.int(0, n) : n;
    const list = [...(rng.chance(0.9) ? [own] : []), ...others].slice(0, count).sort((a, b) => a - b);
    all.push(...Array.from({ length: n }, (_, k) => list[k] ?? -1));
  }
  return input('i32', all.length, (k) => all[k]);
}

const problems = (rng: Rng): Problem[] => [
  ...Array.from({ length: 50 }, (): Problem => {
    const [H, Hkv] = rng.pick([
      [1, 1],
      [3, 1],
      [4, 2],
      [6, 2],
      [8, 1],
      [7, 1],
    ]);
    return {
      ...{ dtype: rng.pick(['f32', 'bf16']), B: rng.int(1, 2), H, Hkv, T: rng.pick([1, 5, 16, 33, 64, 100, 130]) },
      ...{ D: rng.pick([1, 4, 16, 20, 33, 64]), size: rng.pick([1, 3, 4, 16, 17, 64, 80]), n: rng.int(1, 5) },
      segments: rng.chance(0.4),
    };
  }),
  ...(['f32', 'bf16'] as const).flatMap((dtype): Problem[] => [
    { ...plain, dtype, T: 300, H: 8, Hkv: 2, D: 64, size: 64, n: 4 },
    { ...plain, dtype, T: 300, H: 64, D: 8, n: 2 },
    { ...plain, dtype, T: 2500, H: 1, D: 4, size: 8, n: 3 }, // the first block is on more lists than one task takes
    { ...plain, dtype, T: 40, B: 0 },
    { ...plain, dtype, T: 0 },
  ]),
];

/** The first block in every list: it is shared out over tasks. */
const withFirst = (index: TensorSpec, n: number): TensorSpec =>
  input('i32', index.length, (k) => (k % n === 0 ? 0 : index.data![k] === 0 ? -1 : index.data![k]));

function tensors(rng: Rng, s: Problem) {
  const tokens = s.B * s.T;
  const [q, k, v] = [s.H, s.Hkv, s.Hkv].map((heads) => gaussian(rng, s.dtype, tokens * heads * s.D));
  const drawn = lists(rng, s);
  const index = s.T > 2000 ? ascending(withFirst(drawn, s.n), s.n) : drawn;
  return { q, k, v, index, seg: s.segments ? segmentsOf(rng, s.B, s.T) : null };
}

/** Sorted again, without repeats, -1 last. */
function ascending(index: TensorSpec, n: number): TensorSpec {
  const rows = Array.from({ length: index.length / n }, (_, r) => {
    const list = [...new Set(Array.from(index.data!.subarray(r * n, (r + 1) * n)).filter((j) => j >= 0))];
    list.sort((a, b) => a - b);
    return Array.from({ length: n }, (_, k) => list[k] ?? -1);
  }).flat();
  return input('i32', index.length, (k) => rows[k]);
}

const intsOf = (s: Problem): number[] => [s.B, s.T, s.H, s.Hkv, s.D, s.size, s.n];
const close = (dtype: ElementType, factor: number) =>
  dtype === 'f32' ? tolerance(1e-5, 3e-6 * factor, 5e-6) : tolerance(1e-2, 1e-2 * factor, 8e-3);

function forward(rng: Rng, s: Problem): KernelCase {
  const { q, k, v, index, seg } = tensors(rng, s);
  const p = [output(s.dtype, q.length), output('f32', s.B * s.H * s.T), q, k, v, index, seg];
  return makeCase('block_attention', { p, i: intsOf(s), f: [1 / Math.sqrt(s.D)], tolerance: close(s.dtype, 1) });
}

function backward(rng: Rng, s: Problem): KernelCase {
  const { q, k, v, index, seg } = tensors(rng, s);
  const [out, lse, f] = [new Float64Array(q.length), new Float64Array(s.B * s.H * s.T), [1 / Math.sqrt(s.D)]];
  call(ref.block_attention, [out, lse, q, k, v, index, seg], intsOf(s), f);
  const results = [q, k, v].map((x) => output(s.dtype, x.length));
  const given = [input(s.dtype, out.length, (n) => out[n]), input('f32', lse.length, (n) => lse[n]), index, seg];
  return makeCase('block_attention_bwd', {
    p: [...results, gaussian(rng, s.dtype, out.length), q, k, v, ...given],
    ...{ i: intsOf(s), f },
    tolerance: close(s.dtype, 2 * Math.sqrt(1 + (s.H / s.Hkv) * Math.min(s.T, 64))),
  });
}

/** Lists that a kernel must report. */
function badLists(rng: Rng): KernelCase[] {
  const s: Problem = { ...plain, dtype: 'f32', T: 40, H: 1 };
  const { q, k, v, index } = tensors(rng, s);
  const at = 35 * s.n; // a query of block 2
  const cases: [number[], string][] = [
    [[0, 3, -1], 'index 3 out of range: limit 3'],
    [[1, 1, -1], 'index 1 out of range: limit 3'],
    [[-2, -1, -1], 'index -2 out of range: limit 3'],
    [[-1, 2, -1], 'index 2 out of range: limit 0'],
  ];
  return cases.map(([list, error]) => {
    const bad = input('i32', index.length, (n) => (n >= at && n < at + s.n ? list[n - at] : index.data![n]));
    const p = [output('f32', q.length), output('f32', s.T), q, k, v, bad, null];
    return makeCase('block_attention', { p, i: intsOf(s), f: [1], error, note: list.join(' ') });
  });
}

interface Choice {
  readonly dtype: ElementType;
  readonly B: number;
  readonly T: number;
  readonly H: number;
  readonly Hkv: number;
  readonly D: number;
  readonly length: number;
  readonly stride: number;
  readonly size: number;
  readonly n: number;
  readonly initial: number;
  readonly local: number;
  readonly segments: boolean;
  readonly importance: boolean;
}

function selection(rng: Rng, s: Choice): KernelCase {
  const count = s.T < s.length ? 0 : Math.floor((s.T - s.length) / s.stride) + 1;
  const q = gaussian(rng, s.dtype, s.B * s.T * s.H * s.D);
  const kc = gaussian(rng, s.dtype, s.B * count * s.Hkv * s.D);
  const seg = s.segments ? segmentsOf(rng, s.B, s.T) : null;
  const segC = seg && input('i32', s.B * count, () => 0);
  const visible = new Int32Array(s.B * s.T);
  call(blockParts.block_masks, [visible, segC, seg], [s.B, s.T, count, s.length, s.stride], []);
  const scale = 1 / Math.sqrt(s.D);
  const lse = input('f32', s.B * s.H * s.T, (k) => {
    const [b, h, t] = [Math.floor(k / (s.H * s.T)), Math.floor(k / s.T) % s.H, k % s.T];
    const kv = Math.floor(h / (s.H / s.Hkv));
    const scores: number[] = [];
    for (let c = 0; c < count; c++) {
      if (c > visible[b * s.T + t] || (seg && seg.data![b * s.T + t] !== segC!.data![b * count + c])) continue;
      let dot = 0;
      for (let d = 0; d < s.D; d++)
        dot += q.data![((b * s.T + t) * s.H + h) * s.D + d] * kc.data![((b * count + c) * s.Hkv + kv) * s.D + d];
      scores.push(scale * dot);
    }
    return logSumExp(Float64Array.from(scores), 0, scores.length);
  });
  const rows = s.B * s.T * s.Hkv;
  const importance = s.importance ? output('f32', rows * Math.ceil(s.T / s.size)) : null;
  return makeCase('block_select', {
    p: [output('i32', rows * s.n), importance, q, kc, lse, seg, segC],
    i: [s.B, s.T, s.H, s.Hkv, s.D, count, s.length, s.stride, s.size, s.n, s.initial, s.local],
    f: [scale],
    tolerance: tolerance(1e-4, 1e-6, 1e-5),
  });
}

function selections(rng: Rng): KernelCase[] {
  const drawn = Array.from({ length: 40 }, (): Choice => {
    const stride = rng.pick([1, 2, 4]);
    const [H, Hkv] = rng.pick([
      [1, 1],
      [4, 2],
      [6, 2],
      [3, 1],
    ]);
    return {
      ...{ dtype: rng.pick(['f32', 'bf16']), B: rng.int(1, 2), T: rng.pick([1, 7, 40, 64, 100, 150]), H, Hkv, stride },
      ...{ D: rng.pick([4, 16, 20, 64]), length: stride * rng.int(1, 3), size: stride * rng.int(1, 5) },
      ...{ n: rng.int(3, 7), initial: rng.int(0, 1), local: rng.int(0, 2), segments: rng.chance(0.4) },
      importance: rng.chance(0.5),
    };
  });
  const published = { B: 1, T: 400, H: 4, Hkv: 1, D: 32, length: 32, stride: 16, size: 64, n: 4, initial: 1, local: 2 };
  const large = (['f32', 'bf16'] as const).map((dtype) => ({ ...published, dtype, segments: false, importance: true }));
  return [...drawn, ...large].map((s) => selection(rng, s));
}

export const blockAttentionCases: Record<string, CaseGenerator> = {
  block_attention: (_, rng) => [...problems(rng).map((s) => forward(rng, s)), ...badLists(rng)],
  block_attention_bwd: (_, rng) => problems(rng).map((s) => backward(rng, s)),
  block_select: (_, rng) => selections(rng),
};
