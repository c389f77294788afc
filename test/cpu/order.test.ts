/** The device works in the order in which JavaScript asked, whether a replay was awaited or not. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { openDevice } from '../../src/backend/index.ts';
import * as T from '../../src/tensor/index.ts';

test('eager calls and host copies do not overtake a replay that nobody has awaited', async () => {
  const device = openDevice('cpu');
  const x = T.Tensor.from(device, [0], [1]).keep();
  const work = T.fill(device, [256, 256], 1 / 256).keep();
  const step = T.capture(device, () =>
    T.noGrad(() => {
      let m = work;
      for (let k = 0; k < 20; k++) m = T.matmul(m, work);
      T.accumulate(x, T.reshape(T.slice(T.slice(m, 0, 0, 1), 1, 0, 1), [1]));
      return null;
    }),
  );
  const once = x.dataSync()[0];
  assert.ok(once > 0);
  for (let k = 1; k <= 50; k++) {
    const run = step.run();
    const seen = k % 2 ? x.dataSync()[0] : T.add(x, x).dataSync()[0] / 2;
    assert.ok(Math.abs(seen / once - (k + 1)) < 1e-3, `run ${k} was overtaken`);
    await run;
  }
  const run = step.run();
  x.write([0]);
  await run;
  assert.equal(x.dataSync()[0], 0, 'a host write waits as well');
  step.dispose();
  for (const t of [x, work]) t.dispose();
});
