/** What the layer costs, in closed form. */
export interface SparseQkvSizes {
  readonly width: number;
  readonly modules: number;
  readonly lengthKernel: number;
  readonly moduleKernel: number;
  readonly shareQk: boolean;
  readonly output: 'none' | 'multiplicative' | 'dense';
  readonly bias: boolean;
}

export interface SparseQkvCosts {
  /** Of the factored layers, of the convolutions, of biases, of a dense output matrix. */
  readonly factored: number;
  readonly convolutions: number;
  readonly biases: number;
  readonly dense: number;
  readonly parameters: number;
  /** Products of a token besides attention itself: as many as dense layers of these sizes. */
  readonly flops: number;
  /** Values that decoding keeps of the last tokens, besides keys and values. */
  readonly decodeState: number;
}

export function sparseQkvCosts(o: SparseQkvSizes): SparseQkvCosts {
  const { width: d, modules: S } = o;
  const M = d / S;
  const layers = o.output === 'multiplicative' ? 2 : 1;
  const taps = (o.shareQk ? 1 : 2) * o.lengthKernel * o.moduleKernel + o.lengthKernel;
  const factored = layers * d * (M + S);
  const convolutions = taps * M * M;
  const dense = o.output === 'dense' ? d * d : 0;
  const biases = o.bias ? d + (o.shareQk ? 2 : 3) * M + (o.output === 'none' ? 0 : d) : 0;
  return {
    factored,
    convolutions,
    biases,
    dense,
    parameters: factored + convolutions + biases + dense,
    flops: 2 * (layers * d * d + taps * M * M * S + dense),
    decodeState: (o.lengthKernel - 1) * d,
  };
}
