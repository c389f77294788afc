/** The nearest semi-orthogonal matrix, roughly: a polynomial iteration on the singular values, all in products. */
import {
  affine,
  cast,
  matmul,
  mul,
  recip,
  scaleBy,
  sqrt,
  square,
  sum,
  sumsq,
  type Tensor,
} from '../../tensor/index.ts';

type Triple = readonly [number, number, number];

/** Coefficients (a, b, c) of X <- aX + (bXX' + c(XX')^2)X for each iteration, and what the norm is multiplied by first. */
export interface Iteration {
  readonly steps: readonly Triple[];
  readonly margin: number;
}

export const iterations = {
  /** Five times the same quintic (Jordan et al. 2024): singular values end in about [0.68, 1.14], not at 1. */
  quintic: { steps: new Array<Triple>(5).fill([3.4445, -4.775, 2.0315]), margin: 1 },
  /** Polynomials that are best for what the one before leaves (Amsel et al. 2025): in about [0.86, 1.14]. */
  'polar-express': {
    steps: [
      [8.1566, -22.4833, 15.8788],
      [4.0429, -2.8089, 0.5],
      [3.8917, -2.7725, 0.5061],
      [3.2858, -2.3681, 0.4645],
      [2.3465, -1.7098, 0.4232],
    ],
    margin: 1.02,
  },
} satisfies Record<string, Iteration>;

/** x over its Frobenius norm (times a margin), each matrix of a batch by itself, in bf16. */
function normalised(x: Tensor, margin: number): Tensor {
  const inverse = (squares: Tensor): Tensor => recip(affine(sqrt(squares), margin, 1e-7));
  const scaled = x.rank === 2 ? scaleBy(x, inverse(sumsq(x))) : mul(x, inverse(sum(square(x), [-2, -1], true)));
  return cast(scaled, 'bf16');
}

/** Orthogonalises a matrix, or each of a batch [..., rows, columns]. Products are bf16 with f32 sums; gives bf16. */
export function orthogonalise(x: Tensor, { steps, margin }: Iteration): Tensor {
  const [rows, cols] = x.shape.slice(-2);
  const tall = rows > cols;
  let y = normalised(x, margin);
  const options = { compute: 'bf16', out: 'bf16' } as const;
  for (const [a, b, c] of steps) {
    const gram = matmul(y, y, { transA: tall, transB: !tall, ...options });
    const poly = matmul(gram, gram, { alpha: c, addend: affine(gram, b, 0), ...options });
    const addend = affine(y, a, 0);
    y = tall ? matmul(y, poly, { addend, ...options }) : matmul(poly, y, { addend, ...options });
  }
  return y;
}
