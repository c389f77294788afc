/** What the layer costs, in closed form: tests hold the engine's own accounting against it. */

export interface SparseSizes {
  readonly width: number;
  readonly hidden: number;
  readonly block: number;
  readonly rank: number;
}

export interface SparseCosts {
  /** Matrices: units and controller. */
  readonly parameters: number;
  readonly controller: number;
  /** Products of a token in the forward pass of training (all units), and in the backward pass (logits once more). */
  readonly forwardFlops: number;
  readonly backwardFlops: number;
  /** Weights that decoding one token reads; a dense layer reads 2 d F. */
  readonly decodeWeights: number;
  readonly decodeFlops: number;
  /** [tokens, F] tensors of a training pass beyond those of a dense ReLU layer. */
  readonly extraActivations: 0;
}

export function sparseCosts({ width: d, hidden: F, block: N, rank: r }: SparseSizes): SparseCosts {
  const controller = r * (d + F);
  return {
    parameters: 2 * d * F + controller,
    controller,
    forwardFlops: 4 * d * F + 2 * controller,
    backwardFlops: 8 * d * F + 4 * r * d + 6 * r * F,
    decodeWeights: controller + (2 * d * F) / N,
    decodeFlops: 2 * controller + (4 * d * F) / N,
    extraActivations: 0,
  };
}

/** Units that give the sparse layer as many weights as a gated dense one, in whole blocks. */
export function equalHidden(width: number, gatedHidden: number, block: number): number {
  const rank = Math.max(1, Math.round(width / block));
  const F = (3 * width * gatedHidden - rank * width) / (2 * width + rank);
  return block * Math.max(1, Math.round(F / block));
}
