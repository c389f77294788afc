/** What is seen of a layer. Types alone: the page at / has them from here too. */
export interface LayerSeen {
  /** Path of the layer among the model's parts. */
  readonly layer: string;
  readonly kind: 'experts' | 'units';
  /** Experts, or units of the layer. */
  readonly count: number;
  /** Columns of `cells`: one an expert, or one a block of `block` units. */
  readonly columns: number;
  readonly block: number;
  /** [tokens, columns], 0 to 255. Experts: the weight of each that a token went to, relative to the token's largest.
   * Units: the share of the block's that fired. */
  readonly cells: Uint8Array;
  /** Units: mean magnitude, relative to the layer's largest. */
  readonly strength?: Uint8Array;
  /** Of each token: experts that computed, or the share of units that fired. */
  readonly active: Float32Array;
}
