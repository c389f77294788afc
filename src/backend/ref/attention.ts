// Softmax attention over whole score matrices. For one batch and head, with S = scale Q K^T + bias where visible and
// -inf elsewhere: lse_i = log sum_j exp S_ij, P = exp(S - lse), O = P V. Backward, from dO:
//   dV = P^T dO,  dP = dO V^T,  dS = P o (dP - rowsum(dO o O)),  dQ = scale dS K,  dK = scale dS^T Q,  dbias = dS.
import { logSumExp } from './common.ts';
import type { RefArray, RefKernel } from './types.ts';

interface Shape {
  readonly B: number;
  readonly Tq: number;
  readonly Tk: number;
  readonly H: number;
  readonly Hkv: number;
  readonly D: number;
  readonly tokQ: number;
  readonly tokK: number;
  readonly tokV: number;
  readonly tokOut: number;
  readonly causal: boolean;
  readonly window: number;
  readonly biasMode: number;
  readonly scale: number;
}

function shapeOf(i: readonly number[], f: readonly number[]): Shape {
  const [B, Tq, Tk, H, Hkv, D, tokQ, tokK, tokV, tokOut, causal, window, biasMode] = i;
  return { B, Tq, Tk, H, Hkv, D, tokQ, tokK, tokV, tokOut, causal: causal === 1, window, biasMode, scale: f[0] };
}

interface Inputs {
  readonly q: RefArray;
  readonly k: RefArray;
  readonly bias: RefArray | null;
  readonly segQ: RefArray | null;
  readonly segK: RefArray | null;
  /** Under a causal mask a query sees keys up to this one too. */
  readonly visible: RefArray | null;
  /** A key with 0 is seen by the query at its own position only. */
  readonly keep: RefArray | null;
}

/** Where element 0 of a head's vector lies, in a tensor with `T` tokens a batch and `tok` elements a token. */
const headAt = (batch: number, T: number, token: number, tok: number, head: number, D: number): number =>
  (batch * T + token) * tok + head * D;

function visible(s: Shape, x: Inputs, batch: number, i: number, j: number): boolean {
  const position = i + s.Tk - s.Tq;
  const reach = x.visible ? Math.max(position, x.visible[batch * s.Tq + i]) : position;
  if (s.causal && j > reach) return false;
  if (x.keep && x.keep[batch * s.Tk + j] === 0 && j !== position) return false;
  if (s.window > 0 && position - j >= s.window) return false;
  if (s.window > 0 && !s.causal && j - position >= s.window) return false;
  return !x.segQ || !x.segK || x.segQ[batch * s.Tq + i] === x.segK[batch * s.Tk + j];
}

/** Where the logit of (head, query, key) finds its bias, and its gradient goes. */
function biasAt(s: Shape, head: number, i: number, j: number): number {
  if (s.biasMode === 2) return (head * s.Tq + i) * s.Tk + j;
  const position = i + s.Tk - s.Tq;
  return head * (s.Tq + s.Tk - 1) + j - position + s.Tk - 1;
}

/** S[Tq, Tk] of one batch and head. */
function logits(s: Shape, x: Inputs, batch: number, head: number): Float64Array {
  const group = s.H / s.Hkv;
  const out = new Float64Array(s.Tq * s.Tk).fill(Number.NEGATIVE_INFINITY);
  for (let i = 0; i < s.Tq; i++) {
    const qi = headAt(batch, s.Tq, i, s.tokQ, head, s.D);
    for (let j = 0; j < s.Tk; j++) {
      if (!visible(s, x, batch, i, j)) continue;
      const kj = headAt(batch, s.Tk, j, s.tokK, Math.floor(head / group), s.D);
      let dot = 0;
      for (let d = 0; d < s.D; d++) dot += x.q[qi + d] * x.k[kj + d];
      out[i * s.Tk + j] = s.scale * dot + (x.bias && s.biasMode > 0 ? x.bias[biasAt(s, head, i, j)] : 0);
    }
  }
  return out;
}

export const attention: Record<string, RefKernel> = {
  attention({ p, i, f }) {
    const s = shapeOf(i, f);
    const [out, lse, q, k, v] = [p[0]!, p[1]!, p[2]!, p[3]!, p[4]!];
    const inputs = { q, k, bias: p[5], segQ: p[6], segK: p[7], visible: p[8] ?? null, keep: p[9] ?? null };
    const group = s.H / s.Hkv;
    for (let batch = 0; batch < s.B; batch++) {
      for (let head = 0; head < s.H; head++) {
        const S = logits(s, inputs, batch, head);
        for (let i = 0; i < s.Tq; i++) {
          const row = logSumExp(S, i * s.Tk, s.Tk);
          lse[(batch * s.H + head) * s.Tq + i] = row;
          const oi = headAt(batch, s.Tq, i, s.tokOut, head, s.D);
          for (let d = 0; d < s.D; d++) {
            let sum = 0;
            for (let j = 0; j < s.Tk; j++) {
              const vj = headAt(batch, s.Tk, j, s.tokV, Math.floor(head / group), s.D);
              if (S[i * s.Tk + j] > Number.NEGATIVE_INFINITY) sum += Math.exp(S[i * s.Tk + j] - row) * v[vj + d];
            }
            out[oi + d] = sum;
          }
        }
      }
    }
  },

  attention_bwd({ p, i: ints, f }) {
    const s = shapeOf(ints, f);
    const [tokDq, tokDk, tokDv, tokDout] = ints.slice(13);
    const [dq, dk, dv, dout, q, k, v, out, lse] = [0, 1, 2, 4, 5, 6, 7, 8, 9].map((n) => p[n]!);
    const dbias = s.biasMode > 0 ? p[3] : null;
    const inputs = { q, k, bias: p[10], segQ: p[11], segK: p[12], visible: p[13] ?? null, keep: p[14] ?? null };
    const group = s.H / s.Hkv;
    const clear = (x: RefArray, T: number, tok: number, heads: number) => {
      for (let token = 0; token < s.B * T; token++) x.fill(0, token * tok, token * tok + heads * s.D);
    };
    clear(dq, s.Tq, tokDq, s.H);
    clear(dk, s.Tk, tokDk, s.Hkv);
    clear(dv, s.Tk, tokDv, s.Hkv);
    dbias?.fill(0, 0, s.H * (s.biasMode === 2 ? s.Tq * s.Tk : s.Tq + s.Tk - 1));

    for (let batch = 0; batch < s.B; batch++) {
      for (let head = 0; head < s.H; head++) {
        const S = logits(s, inputs, batch, head);
        const kvHead = Math.floor(head / group);
        for (let i = 0; i < s.Tq; i++) {
          const row = lse[(batch * s.H + head) * s.Tq + i];
          const qi = headAt(batch, s.Tq, i, s.tokQ, head, s.D);
          const oi = headAt(batch, s.Tq, i, s.tokOut, head, s.D);
          const dqi = headAt(batch, s.Tq, i, tokDq, head, s.D);
          const doi = headAt(batch, s.Tq, i, tokDout, head, s.D);
          let rowDot = 0;
          for (let d = 0; d < s.D; d++) rowDot += dout[doi + d] * out[oi + d];
          for (let j = 0; j < s.Tk; j++) {
            if (S[i * s.Tk + j] === Number.NEGATIVE_INFINITY) continue;
            const kj = headAt(batch, s.Tk, j, s.tokK, kvHead, s.D);
            const vj = headAt(batch, s.Tk, j, s.tokV, kvHead, s.D);
            const dkj = headAt(batch, s.Tk, j, tokDk, kvHead, s.D);
            const dvj = headAt(batch, s.Tk, j, tokDv, kvHead, s.D);
            const P = Math.exp(S[i * s.Tk + j] - row);
            let dP = 0;
            for (let d = 0; d < s.D; d++) dP += dout[doi + d] * v[vj + d];
            const dS = P * (dP - rowDot);
            for (let d = 0; d < s.D; d++) {
              dv[dvj + d] += P * dout[doi + d];
              dq[dqi + d] += s.scale * dS * k[kj + d];
              dk[dkj + d] += s.scale * dS * q[qi + d];
            }
            if (dbias) dbias[biasAt(s, head, i, j)] += dS;
          }
        }
      }
    }
  },
};
