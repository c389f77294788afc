/** What an op costs before any arithmetic: eager calls on tiny tensors, and replayed ones. Target: 2 microseconds. */
import { openDevice } from '../src/backend/index.ts';
import { add, capture, matmul, noGrad, scope, Tensor } from '../src/tensor/index.ts';
import { median, type Row } from './harness.ts';

const TARGET_NS = 2000;

function eager(name: string, op: () => void, count: number): Row {
  const times: number[] = [];
  for (let round = 0; round < 15; round++) {
    const start = process.hrtime.bigint();
    for (let k = 0; k < count; k += 100)
      scope(() => {
        for (let j = 0; j < 100; j++) op();
      });
    times.push(Number(process.hrtime.bigint() - start) / count);
  }
  const ns = median(times.slice(5));
  return {
    name: `overhead/${name}`,
    ours: ns,
    peer: TARGET_NS,
    peerName: 'target',
    ratio: TARGET_NS / ns,
    unit: 'ns/op',
  };
}

export async function* run(): AsyncIterable<Row> {
  const device = openDevice('cpu');
  const a = Tensor.from(device, [1, 2, 3, 4], [2, 2]).keep();
  const b = Tensor.from(device, [1, 2, 3, 4], [2, 2]).keep();
  yield eager('eager-add', () => add(a, b), 20_000);
  yield eager('eager-matmul', () => matmul(a, b), 20_000);
  const p = Tensor.from(device, [1, 2, 3, 4], [2, 2]).parameter();
  yield eager('eager-add-with-tape', () => add(p, b), 20_000);

  // A replay is one native call: its cost for each op holds no JavaScript at all.
  for (const ops of [100, 10_000]) {
    const step = capture(device, () =>
      noGrad(() => {
        let x = a;
        for (let k = 0; k < ops; k++) x = add(x, b);
        return x;
      }),
    );
    const times: number[] = [];
    for (let k = 0; k < 15; k++) {
      const start = process.hrtime.bigint();
      await step.run();
      times.push(Number(process.hrtime.bigint() - start));
    }
    const ns = median(times) / ops;
    yield {
      name: `overhead/replay-${ops}-ops`,
      ours: ns,
      peer: TARGET_NS,
      peerName: 'target',
      ratio: TARGET_NS / ns,
      unit: 'ns/op',
    };
    step.dispose();
  }
}
