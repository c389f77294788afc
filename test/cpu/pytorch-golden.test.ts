// Ops against what PyTorch computed (test/fixtures/pytorch, made by bench/peers/make_goldens.py): an oracle that shares
// no code and no author with this project. Every instruction-set level of this CPU is checked.
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { CpuDevice } from '../../src/backend/cpu/device.ts';
import * as T from '../../src/tensor/index.ts';
import { goldens, numbers } from '../support/goldens.ts';
import { Rng } from '../support/kernel-cases/build.ts';

const cpu = new CpuDevice();
const { level, levels } = cpu.info();
after(() => cpu.useLevel(level));

type Options = Record<string, never>;
interface OpGolden {
  readonly op: string;
  /** "kind shape ...", see makeInput. */
  readonly inputs: string[];
  readonly options?: Options;
  /** "shape: values". */
  readonly out: string[];
  /** Of each input; null where there is none. Absent: the op has no gradient. */
  readonly grads?: (string | null)[];
}

const unary = { ...T, gelu_erf: T.geluErf } as unknown as Record<string, (x: T.Tensor) => T.Tensor>;
const simple = (f: (...x: T.Tensor[]) => T.Tensor) => (x: T.Tensor[]) => f(...x);

type Apply = (x: T.Tensor[], o: Options) => T.Tensor | T.Tensor[];
const reduce =
  (f: typeof T.sum): Apply =>
  ([x], { axes, keep }) =>
    f(x, axes, keep);

const named: Record<string, Apply> = {
  powc: ([x], { e }) => T.powc(x, e),
  clamp: ([x], { lo, hi }) => T.clamp(x, bound(lo), bound(hi)),
  affine: ([x], { a, b }) => T.affine(x, a, b),
  scale_by: ([x, s], { c }) => T.scaleBy(x, s, c),
  add_scaled: ([a, b], { ca, cb }) => T.addScaled(a, b, ca, cb),
  glu: ([x], { act }) => T.glu(x, act),
  sum: reduce(T.sum),
  mean: reduce(T.mean),
  max: reduce(T.max),
  min: reduce(T.min),
  prod: reduce(T.prod),
  argmax: ([x], { axis }) => T.argmax(x, axis),
  argmin: ([x], { axis }) => T.argmin(x, axis),
  cumsum: ([x], { axis, ...o }) => T.cumsum(x, axis, o),
  log_softmax: ([x]) => T.logSoftmax(x),
  cross_entropy: ([x, t], o) => T.crossEntropy(x, t, o),
  linear_cross_entropy: ([h, w, t, s], o) => T.linearCrossEntropy(h, w, t, s, o).loss,
  matmul: ([a, b, ...rest], { bias, addend, ...o }) =>
    T.matmul(a, b, { ...(o as object), bias: bias ? rest.shift() : null, addend: addend ? rest.shift() : null }),
  layer_norm: ([x, ...wb], { eps, weight = true, bias = true }) =>
    T.layerNorm(x, weight ? wb.shift()! : null, bias ? wb.shift()! : null, { eps }),
  rms_norm: ([x, w], { eps }) => T.rmsNorm(x, w ?? null, { eps }),
  conv1d: ([x, w, b], o) => T.conv1d(x, w, b ?? null, o),
  embedding: ([table, ids]) => T.embedding(table, ids),
  one_hot: ([ids], { classes }) => T.oneHot(ids, classes),
  gather: ([x, i], { axis }) => T.gather(x, axis, i),
  scatter_add: ([i, x], { axis, n }) => T.scatterAdd(x, axis, i, n),
  sort: ([x], o) => Object.values(T.sort(x, o)),
  topk: ([x], { k }) => Object.values(T.topk(x, k)),
  rope: ([x, cos, sin, positions], o) => T.rope(x, cos, sin, { ...(o as object), positions }),
  attention: ([q, k, v, ...rest], o) => T.attention(q, k, v, attentionOptions(rest, o)),
  attention_packed: ([qkv, ...rest], { heads, kvHeads, ...o }) =>
    T.attentionPacked(qkv, heads, kvHeads, attentionOptions(rest, o as Options)),
  permute: ([x], { order }) => T.permute(x, order),
  expand: ([x], { shape }) => T.expand(x, shape),
  slice: ([x], { axis, begin, end, step }) => T.slice(x, axis, begin, end, step),
  pad: ([x], { axis, before, after, value }) => T.pad(x, axis, before, after, value),
  concat: (x, { axis }) => T.concat(x, axis),
  stack: (x, { axis }) => T.stack(x, axis),
};

const bound = (x: number | string): number => Number(x);
function attentionOptions(rest: T.Tensor[], { bias, segments, ...o }: Options): T.AttentionOptions {
  return {
    ...(o as object),
    bias: bias ? rest.shift() : null,
    segments: segments ? rest.shift() : null,
    keySegments: segments ? rest.shift() : null,
  };
}

/** The values that the generator drew (bench/peers/golden_ops.py, make_input). */
function makeInput(text: string, seed: string): T.Tensor {
  const [kind, size, ...rest] = text.split(' ');
  const shape = size.split('x').map(Number);
  const rng = new Rng(seed);
  const n = T.sizeOfShape(shape);
  const given = rest.map(Number);
  const [lo, hi, step] = given;
  const draws: Record<string, (k: number) => number> = {
    u: () => rng.uniform(lo, hi),
    c: () => rng.uniform(lo, hi),
    g: () => lo + step * rng.int(0, Math.round((hi - lo) / step)),
    i: () => rng.int(lo, hi),
    v: (k) => given[k],
  };
  const draw = draws[kind];
  const values = Array.from({ length: n }, (_, k) => draw(k));
  const t = T.Tensor.from(cpu, values, shape, kind === 'i' ? 'i32' : 'f32');
  return kind === 'i' || kind === 'c' ? t : t.parameter();
}

/** What is wrong with values, or null. Errors count against each element, and against the largest where sums cancel. */
function fault(got: ArrayLike<number>, want: readonly number[], each = 3e-6, ofLargest = 1e-6): string | null {
  if (got.length !== want.length) return `${got.length} elements, not ${want.length}`;
  const largest = want.reduce((m, w) => (Number.isFinite(w) ? Math.max(m, Math.abs(w)) : m), 0.1);
  for (let k = 0; k < want.length; k++) {
    if (Object.is(got[k], want[k]) || got[k] === want[k]) continue;
    const off = Math.abs(got[k] - want[k]);
    if (!(off <= each * Math.abs(want[k]) + ofLargest * largest + 1e-38))
      return `element ${k} is ${got[k]}, PyTorch has ${want[k]}`;
  }
  return null;
}

function opFaults({ op, inputs: specs, options = {}, out, grads }: OpGolden, k: number): string[] {
  const found: string[] = [];
  const note = (where: string, what: string | null): void => {
    if (what) found.push(`${op} ${k} ${JSON.stringify(options)}: ${where}: ${what}`);
  };
  T.scope(() => {
    const inputs = specs.map((s, j) => makeInput(s, `${op} ${k} ${j}`));
    const result = (named[op] ?? simple(unary[op]))(inputs, options);
    const outputs = Array.isArray(result) ? result : [result];
    assert.equal(outputs.length, out.length);
    outputs.forEach((y, j) => {
      const [shape, values] = out[j].split(': ');
      note(`shape of output ${j}`, y.shape.join('x') === shape ? null : `[${y.shape}], not ${shape}`);
      note(`output ${j}`, fault(y.dataSync(), numbers(values)));
    });
    if (!grads) return;
    const rng = new Rng(`${op} ${k} dy`);
    const [y] = outputs;
    const dy = T.Tensor.from(
      cpu,
      Array.from({ length: y.size }, () => rng.uniform(-1, 1)),
      y.shape,
    );
    const wanted = inputs.filter((x) => x.requiresGrad);
    const ours = T.gradients(y, wanted, dy);
    grads.forEach((want, j) => {
      if (want !== null)
        note(`gradient of input ${j}`, fault(ours[wanted.indexOf(inputs[j])].dataSync(), numbers(want)));
    });
  });
  return found;
}

describe(`ops and their gradients (${levels.join(', ')})`, () => {
  const cases = goldens<OpGolden>('ops').map((golden, k) => ({ golden, k }));
  for (const op of new Set(cases.map((c) => c.golden.op)))
    test(op, () => {
      for (const each of levels) {
        cpu.useLevel(each);
        const faults = cases.filter((c) => c.golden.op === op).flatMap((c) => opFaults(c.golden, c.k));
        assert.deepEqual(faults, [], each);
      }
    });
});
