// Cases of attention, forward and backward. The backward pass gets the out and lse that the reference computes.
import type { ElementType } from '../../../src/backend/dtype.ts';
import { attention as refAttention } from '../../../src/backend/ref/attention.ts';
import { gapped, gaussian, input, makeCase, output, outputIn, type Rng, tolerance, updated } from './build.ts';
import type { CaseGenerator, KernelCase, TensorSpec } from './types.ts';

interface Problem {
  readonly dtype: ElementType;
  readonly B: number;
  readonly Tq: number;
  readonly Tk: number;
  readonly H: number;
  readonly Hkv: number;
  readonly D: number;
  readonly causal: boolean;
  readonly window: number;
  readonly biasMode: number;
  readonly segments: boolean;
  /** Queries that see keys ahead of them; keys that only their own query sees. */
  readonly visible?: boolean;
  readonly keep?: boolean;
  /** q, k, v are parts of one tensor of tokens; needs Tq = Tk. */
  readonly packed: boolean;
  /** Elements between a token's last head and the next token. */
  readonly gap: number;
}

interface Tensors {
  readonly q: TensorSpec;
  readonly k: TensorSpec;
  readonly v: TensorSpec;
  readonly bias: TensorSpec | null;
  readonly segQ: TensorSpec | null;
  readonly segK: TensorSpec | null;
  readonly masks: readonly (TensorSpec | null)[];
}

/** Elements from the first token's start to the last head's end. */
const span = (B: number, T: number, tok: number, heads: number, D: number): number =>
  B * T === 0 ? 0 : (B * T - 1) * tok + heads * D;

const isPacked = (s: Problem) => s.packed && s.Tq === s.Tk;

function tokens(s: Problem): { tokQ: number; tokKV: number; tokOut: number } {
  const all = (s.H + 2 * s.Hkv) * s.D;
  if (isPacked(s)) return { tokQ: all, tokKV: all, tokOut: s.H * s.D };
  return { tokQ: s.H * s.D + s.gap, tokKV: s.Hkv * s.D + s.gap, tokOut: s.H * s.D + s.gap };
}

/** Segment numbers that grow along the sequence, for queries and keys whose ends are aligned. */
function segments(rng: Rng, { B, Tq, Tk }: Problem): { segQ: TensorSpec; segK: TensorSpec } {
  const T = Math.max(Tq, Tk);
  let current = 0;
  const all = Array.from({ length: B * T }, (_, k) => {
    if (k % T === 0) current = 0;
    else if (rng.chance(0.15)) current++;
    return current;
  });
  const last = (n: number) => input('i32', B * n, (k) => all[Math.floor(k / n) * T + (T - n) + (k % n)]);
  return { segQ: last(Tq), segK: last(Tk) };
}

/** `first` is the position of q among the arguments: packed k and v refer to it. */
function tensors(rng: Rng, s: Problem, first: number): Tensors {
  const { tokQ, tokKV } = tokens(s);
  let [q, k, v] = [
    gapped(rng, s.dtype, span(s.B, s.Tq, tokQ, s.H, s.D), tokQ, s.H * s.D),
    gapped(rng, s.dtype, span(s.B, s.Tk, tokKV, s.Hkv, s.D), tokKV, s.Hkv * s.D),
    gapped(rng, s.dtype, span(s.B, s.Tk, tokKV, s.Hkv, s.D), tokKV, s.Hkv * s.D),
  ];
  if (isPacked(s)) {
    q = gaussian(rng, s.dtype, s.B * s.Tq * tokQ);
    const part = (offset: number, length: number): TensorSpec => ({
      dtype: s.dtype,
      length,
      data: q.data!.subarray(offset, offset + length),
      role: 'in',
      alias: { arg: first, offset },
    });
    k = part(s.H * s.D, k.length);
    v = part((s.H + s.Hkv) * s.D, v.length);
  }
  const distances = Math.max(s.Tq + s.Tk - 1, 0);
  const bias = s.biasMode === 0 ? null : gaussian(rng, 'f32', s.H * (s.biasMode === 1 ? distances : s.Tq * s.Tk));
  const { segQ, segK } = s.segments ? segments(rng, s) : { segQ: null, segK: null };
  return { q, k, v, bias, segQ, segK, masks: masks(rng, s) };
}

/** visible and keep; nothing at all where neither is asked for. */
function masks(rng: Rng, { B, Tq, Tk, visible, keep }: Problem): (TensorSpec | null)[] {
  if (!visible && !keep) return [];
  // Prefixes as rows have them: runs of queries that see the same key, and queries that see nothing ahead.
  let reach = -1;
  const ahead = (): number => {
    if (rng.chance(0.1)) reach = rng.chance(0.4) ? -1 : rng.int(0, Tk - 1);
    return reach;
  };
  const seen = visible ? input('i32', B * Tq, ahead) : null;
  return keep ? [seen, input('i32', B * Tk, () => (rng.chance(0.8) ? rng.pick([1, 2, -1]) : 0))] : [seen];
}

function ints(s: Problem): number[] {
  const { tokQ, tokKV, tokOut } = tokens(s);
  return [s.B, s.Tq, s.Tk, s.H, s.Hkv, s.D, tokQ, tokKV, tokKV, tokOut, Number(s.causal), s.window, s.biasMode];
}

const scaleOf = (s: Problem) => 1 / Math.sqrt(s.D);
const outLength = (s: Problem) => span(s.B, s.Tq, tokens(s).tokOut, s.H, s.D);
// Probabilities may pass through bf16 on their way into a bf16 product: 2^-9 each, on values of size 1.
const close = (dtype: ElementType, factor: number) =>
  dtype === 'f32' ? tolerance(1e-5, 3e-6 * factor, 5e-6) : tolerance(1e-2, 1e-2 * factor, 8e-3);

function forward(rng: Rng, s: Problem): KernelCase {
  const { q, k, v, bias, segQ, segK, masks } = tensors(rng, s, 2);
  const out = s.gap > 0 ? updated(gaussian(rng, s.dtype, outLength(s))) : output(s.dtype, outLength(s));
  const p = [out, output('f32', s.B * s.H * s.Tq), q, k, v, bias, segQ, segK, ...masks];
  return makeCase('attention', { p, i: ints(s), f: [scaleOf(s)], tolerance: close(s.dtype, 1) });
}

function backward(rng: Rng, s: Problem): KernelCase {
  const { q, k, v, bias, segQ, segK, masks } = tensors(rng, s, 5);
  const { tokQ, tokKV, tokOut } = tokens(s);
  const [out, lse] = [new Float64Array(outLength(s)), new Float64Array(s.B * s.H * s.Tq)];
  const p = [out, lse, ...[q, k, v, bias, segQ, segK, ...masks].map((spec) => spec?.data ?? null)];
  refAttention.attention({ p, m: p, o: p.map(() => 0), t: [], i: ints(s), f: [scaleOf(s)] });

  // Between the tokens of a gradient lies something else, which must stay.
  const result = (n: number) => (s.gap > 0 ? updated(gaussian(rng, s.dtype, n)) : output(s.dtype, n));
  let [dq, dk, dv] = [result(q.length), result(k.length), result(v.length)];
  if (isPacked(s)) {
    dq = output(s.dtype, q.length);
    dk = outputIn(0, s.dtype, k.length, s.H * s.D);
    dv = outputIn(0, s.dtype, v.length, (s.H + s.Hkv) * s.D);
  }
  return makeCase('attention_bwd', {
    p: [
      ...[dq, dk, dv, bias ? output('f32', bias.length) : null],
      ...[gapped(rng, s.dtype, outLength(s), tokOut, s.H * s.D), q, k, v],
      ...[
        input(s.dtype, out.length, (n) => out[n]),
        input('f32', lse.length, (n) => lse[n]),
        bias,
        segQ,
        segK,
        ...masks,
      ],
    ],
    i: [...ints(s), tokQ, tokKV, tokKV, tokOut],
    f: [scaleOf(s)],
    // A key's gradient sums over all queries of its group.
    tolerance: close(s.dtype, 2 * Math.sqrt(1 + (s.H / s.Hkv) * Math.min(s.Tq, 64))),
  });
}

function problems(rng: Rng): Problem[] {
  const lengths = [1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 48, 64, 65, 100];
  const random = Array.from({ length: 110 }, (): Problem => {
    const [H, Hkv] = rng.pick([
      [1, 1],
      [2, 2],
      [3, 1],
      [4, 2],
      [6, 3],
      [8, 1],
    ]);
    const Tq = rng.pick(lengths);
    return {
      dtype: rng.pick(['f32', 'bf16']),
      B: rng.int(1, 3),
      Tq,
      Tk: rng.chance(0.5) ? Tq : rng.pick(lengths),
      H,
      Hkv,
      D: rng.pick([1, 2, 3, 4, 8, 12, 16, 20, 31, 32, 33, 40, 64, 80, 96, 128]),
      causal: rng.chance(0.6),
      window: rng.chance(0.4) ? rng.pick([1, 2, 5, 16, 40]) : 0,
      biasMode: rng.pick([0, 0, 1, 2]),
      segments: rng.chance(0.35),
      packed: rng.chance(0.4),
      gap: rng.chance(0.3) ? rng.int(1, 5) : 0,
    };
  });
  const plain = {
    B: 1,
    H: 2,
    Hkv: 2,
    D: 64,
    causal: true,
    window: 0,
    biasMode: 0,
    segments: false,
    packed: false,
    gap: 0,
  };
  const chosen = (['f32', 'bf16'] as const).flatMap((dtype): Problem[] => [
    { ...plain, dtype, Tq: 300, Tk: 300 },
    { ...plain, dtype, Tq: 1, Tk: 700 }, // decoding one token
    { ...plain, dtype, Tq: 7, Tk: 400, window: 100, Hkv: 1 },
    { ...plain, dtype, Tq: 260, Tk: 260, causal: false, window: 33, biasMode: 1, segments: true },
    { ...plain, dtype, Tq: 40, Tk: 10, H: 4, biasMode: 2 }, // early queries stand before every key
    { ...plain, dtype, Tq: 5, Tk: 5, B: 0 },
    { ...plain, dtype, Tq: 0, Tk: 5 },
    { ...plain, dtype, Tq: 4, Tk: 0, D: 8 },
  ]);
  // Windows around the sizes of tiles, which a device skips when the window leaves them out.
  const windows = [15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129].map(
    (window): Problem => ({
      ...{ ...plain, dtype: rng.pick(['f32', 'bf16']), D: 16, H: 1, Hkv: 1, window, causal: rng.chance(0.6) },
      ...{ Tq: rng.int(130, 200), Tk: rng.int(130, 260) },
    }),
  );
  const masked = Array.from({ length: 70 }, (): Problem => {
    const [visible, keep] = rng.pick([
      [true, false],
      [false, true],
      [true, true],
    ]);
    const Tk = rng.pick([1, 5, 17, 64, 65, 130, 300]);
    return {
      ...{ ...plain, dtype: rng.pick(['f32', 'bf16']), B: rng.int(1, 3), H: 2, Hkv: rng.int(1, 2), visible, keep, Tk },
      ...{ Tq: rng.chance(0.6) ? Tk : rng.pick([1, 9, 64, 140]), D: rng.pick([4, 16, 40, 64]) },
      ...{ causal: rng.chance(0.85), window: rng.chance(0.3) ? rng.pick([1, 5, 40, 100]) : 0 },
      ...{ biasMode: rng.pick([0, 0, 1, 2]), segments: rng.chance(0.5), packed: rng.chance(0.4) },
    };
  });
  return [...random, ...chosen, ...windows, ...masked];
}

export const attentionCases: Record<string, CaseGenerator> = {
  attention: (_, rng) => problems(rng).map((s) => forward(rng, s)),
  attention_bwd: (_, rng) => problems(rng).map((s) => backward(rng, s)),
};
