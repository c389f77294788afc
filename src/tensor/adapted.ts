/** A weight in blocks with a difference of low rank beside it: W + scale B A, without being put together. */
import { Tensor } from './tensor.ts';

export class AdaptedTensor extends Tensor {
  /** [rank, in] and [out, rank]; in blocks too where a row's result must not depend on the rows beside it. */
  readonly a: Tensor;
  readonly b: Tensor;
  readonly scale: number;

  constructor(w: Tensor, a: Tensor, b: Tensor, scale: number) {
    super(w.storage, w.dtype, w.shape, w.offset);
    [this.a, this.b, this.scale] = [a, b, scale];
  }

  override dispose(): void {
    for (const t of [this.a, this.b]) t.dispose();
    super.dispose();
  }
}
