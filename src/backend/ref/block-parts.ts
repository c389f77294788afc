// What surrounds the branches of block-sparse attention: overlapping blocks as rows, masks, the gated sum.
import type { RefKernel } from './types.ts';

const BRANCHES = 3;
const MIXED = -(2 ** 31);

export const blockParts: Record<string, RefKernel> = {
  unfold_blocks({ p, i: [B, T, count, H, D, length, stride] }) {
    const [out, x] = [p[0]!, p[1]!];
    let at = 0;
    for (let b = 0; b < B; b++)
      for (let c = 0; c < count; c++)
        for (let h = 0; h < H; h++)
          for (let k = 0; k < length; k++)
            for (let d = 0; d < D; d++) out[at++] = x[((b * T + c * stride + k) * H + h) * D + d];
  },

  fold_blocks({ p, i: [B, T, count, H, D, length, stride] }) {
    const [dx, dout] = [p[0]!, p[1]!];
    dx.fill(0, 0, B * T * H * D);
    let at = 0;
    for (let b = 0; b < B; b++)
      for (let c = 0; c < count; c++)
        for (let h = 0; h < H; h++)
          for (let k = 0; k < length; k++)
            for (let d = 0; d < D; d++) dx[((b * T + c * stride + k) * H + h) * D + d] += dout[at++];
  },

  block_masks({ p, i: [B, T, count, length, stride] }) {
    const [visible, segment, seg] = [p[0]!, p[1], p[2]];
    for (let k = 0; k < B * T; k++) visible[k] = Math.max(-1, Math.floor(((k % T) + 1 - length) / stride));
    if (!segment || !seg) return;
    for (let b = 0; b < B; b++)
      for (let c = 0; c < count; c++) {
        const of = seg.subarray(b * T + c * stride, b * T + c * stride + length);
        segment[b * count + c] = of.every((s) => s === of[0]) ? of[0] : MIXED;
      }
  },

  gate_branches({ p, i: [tokens, H, D] }) {
    const [out, gates, ys] = [p[0]!, p[4]!, [p[1]!, p[2]!, p[3]!]];
    for (let k = 0; k < tokens * H * D; k++) {
      const [t, h] = [Math.floor(k / (H * D)), Math.floor(k / D) % H];
      out[k] = ys.reduce((sum, y, c) => sum + gates[(t * BRANCHES + c) * H + h] * y[k], 0);
    }
  },

  gate_branches_bwd({ p, i: [tokens, H, D] }) {
    const [dys, dgates, dout, ys, gates] = [[p[0]!, p[1]!, p[2]!], p[3]!, p[4]!, [p[5]!, p[6]!, p[7]!], p[8]!];
    dgates.fill(0, 0, tokens * BRANCHES * H);
    for (let k = 0; k < tokens * H * D; k++) {
      const [t, h] = [Math.floor(k / (H * D)), Math.floor(k / D) % H];
      for (let c = 0; c < BRANCHES; c++) {
        const gate = (t * BRANCHES + c) * H + h;
        dys[c][k] = gates[gate] * dout[k];
        dgates[gate] += ys[c][k] * dout[k];
      }
    }
  },
};
