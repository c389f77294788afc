// Block-sparse attention by its definition: loops over queries, in float64.
import type { ParamTree } from '../../src/nn/index.ts';
import { flatten } from '../../src/nn/index.ts';
import { valuesOf } from './ref-values.ts';

export interface Sizes {
  readonly heads: number;
  readonly kvHeads: number;
  readonly length: number;
  readonly stride: number;
  readonly size: number;
  readonly blocks: number;
  readonly window: number;
}

type Rows = number[][];

const product = (w: Rows, x: readonly number[]): number[] => w.map((row) => row.reduce((s, v, k) => s + v * x[k], 0));
const plus = (a: readonly number[], b: readonly number[]): number[] => a.map((v, k) => v + b[k]);
const gelu = (x: number): number => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));

/** Matrices (or vectors as one row) of a layer by name. */
export function matricesOf(params: ParamTree): Record<string, Rows> {
  return Object.fromEntries(
    flatten(params).map(({ path, tensor }) => {
      const cols = tensor.shape[tensor.rank - 1];
      const values = Array.from(valuesOf(tensor));
      return [path, Array.from({ length: tensor.size / cols }, (_, r) => values.slice(r * cols, (r + 1) * cols))];
    }),
  );
}

function softmax(scores: readonly number[]): number[] {
  const most = Math.max(...scores);
  const e = scores.map((s) => Math.exp(s - most));
  const total = e.reduce((a, b) => a + b, 0);
  return e.map((v) => v / total);
}

const mix = (p: readonly number[], values: Rows, d: number): number[] =>
  Array.from({ length: d }, (_, c) => p.reduce((s, w, k) => s + w * values[k][c], 0));

/** What the layer adds for tokens x [T][width], without positions; segments if documents share the row. */
export function blockSparse(x: Rows, params: ParamTree, o: Sizes, segments: readonly number[] = x.map(() => 0)): Rows {
  const w = matricesOf(params);
  const d = w.query.length / o.heads;
  const perHead = (name: string, heads: number): Rows[] =>
    x.map((row) => {
      const y = product(w[name], row);
      return Array.from({ length: heads }, (_, h) => y.slice(h * d, (h + 1) * d));
    });
  const q = perHead('query', o.heads);
  const [ks, vs, kw, vw, kc, vc] = [
    ...['selectedKey', 'selectedValue', 'windowKey', 'windowValue', 'compressedKey', 'compressedValue'],
  ].map((name) => perHead(name, o.kvHeads));
  const phi = (name: string, block: Rows): number[] => {
    const placed = block.flatMap((token, k) => plus(token, w[`${name}Position`][k]));
    const inner = plus(product(w[`${name}Up`], placed), w[`${name}UpBias`][0]).map(gelu);
    return product(w[`${name}Down`], inner);
  };
  const count = x.length < o.length ? 0 : Math.floor((x.length - o.length) / o.stride) + 1;
  const compressed = Array.from({ length: count }, (_, c) => {
    const at = Array.from({ length: o.length }, (_, k) => c * o.stride + k);
    return {
      last: at[o.length - 1],
      segments: new Set(at.map((t) => segments[t])),
      key: Array.from({ length: o.kvHeads }, (_, g) =>
        phi(
          'keyBlock',
          at.map((t) => kc[t][g]),
        ),
      ),
      value: Array.from({ length: o.kvHeads }, (_, g) =>
        phi(
          'valueBlock',
          at.map((t) => vc[t][g]),
        ),
      ),
    };
  });
  const score = (a: readonly number[], b: readonly number[]): number =>
    a.reduce((s, v, k) => s + v * b[k], 0) / Math.sqrt(d);

  return x.map((row, t) => {
    const gates = plus(product(w.gate, row), w.gateBias[0]).map((z) => 1 / (1 + Math.exp(-z)));
    const seen = compressed.flatMap((b, c) =>
      b.last <= t && b.segments.size === 1 && b.segments.has(segments[t]) ? [c] : [],
    );
    const probabilities = Array.from({ length: o.heads }, (_, h) => {
      const g = Math.floor(h / (o.heads / o.kvHeads));
      return softmax(seen.map((c) => score(q[t][h], compressed[c].key[g])));
    });
    const chosen = Array.from({ length: o.kvHeads }, (_, g) => {
      const own = Math.floor(t / o.size);
      const importance = new Array<number>(own + 1).fill(0);
      for (let h = (g * o.heads) / o.kvHeads; h < ((g + 1) * o.heads) / o.kvHeads; h++)
        seen.forEach((c, k) => {
          for (let cell = 0; cell < o.length / o.stride; cell++)
            importance[Math.floor(((c + cell) * o.stride) / o.size)] += probabilities[h][k];
        });
      const candidates = importance.flatMap((_, j) =>
        segments.slice(j * o.size, (j + 1) * o.size).includes(segments[t]) ? [j] : [],
      );
      const rank = (j: number): number =>
        j === candidates[0] || j >= candidates[candidates.length - 1] - 1 ? Infinity : importance[j];
      const order = candidates.slice().sort((i, j) => (rank(j) === rank(i) ? i - j : rank(j) - rank(i)));
      return new Set(order.slice(0, o.blocks));
    });
    const past = Array.from({ length: t + 1 }, (_, j) => j).filter((j) => segments[j] === segments[t]);
    const mixed = Array.from({ length: o.heads }, (_, h) => {
      const g = Math.floor(h / (o.heads / o.kvHeads));
      const attend = (keys: readonly number[], k: Rows[], v: Rows[]): number[] =>
        mix(
          softmax(keys.map((j) => score(q[t][h], k[j][g]))),
          keys.map((j) => v[j][g]),
          d,
        );
      const parts = [
        mix(
          probabilities[h],
          seen.map((c) => compressed[c].value[g]),
          d,
        ),
        attend(
          past.filter((j) => chosen[g].has(Math.floor(j / o.size))),
          ks,
          vs,
        ),
        attend(
          past.filter((j) => t - j < o.window),
          kw,
          vw,
        ),
      ];
      return Array.from({ length: d }, (_, c) => parts.reduce((s, y, b) => s + gates[b * o.heads + h] * y[c], 0));
    });
    return product(w.out, mixed.flat());
  });
}

/** Opens some branches (compressed, selected, window) and shuts the others, whatever the token. */
export function openGates(params: ParamTree, prefix: string, open: readonly [boolean, boolean, boolean]): void {
  for (const { path, tensor } of flatten(params)) {
    if (path === `${prefix}gate`) tensor.write(new Float64Array(tensor.size));
    if (path === `${prefix}gateBias`) {
      const heads = tensor.size / 3;
      tensor.write(Float64Array.from({ length: tensor.size }, (_, k) => (open[Math.floor(k / heads)] ? 60 : -60)));
    }
  }
}
