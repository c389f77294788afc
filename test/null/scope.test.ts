// Who frees tensors and when: scopes, keep(), dispose(); the garbage collector only outside scopes.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { Memory } from '../../src/backend/device.ts';
import { AnsatzError } from '../../src/backend/errors.ts';
import { MetaDevice } from '../../src/backend/meta/device.ts';
import { RefDevice } from '../../src/backend/ref/device.ts';
import * as T from '../../src/tensor/index.ts';

/** A device that knows what is live and refuses to release anything twice. */
class Watched extends MetaDevice {
  readonly live = new Set<number>();
  override allocate(...args: Parameters<MetaDevice['allocate']>): Memory {
    const memory = super.allocate(...args);
    this.live.add(memory.id);
    return memory;
  }
  override release(memory: Memory): void {
    assert.ok(this.live.delete(memory.id), 'released twice');
    super.release(memory);
  }
}

const device = new Watched();
const made = (n = 2): T.Tensor => T.zeros(device, [n]);
/** Live allocations that fn leaves behind. */
function leftBy(fn: () => void): number {
  const before = device.live.size;
  fn();
  return device.live.size - before;
}

describe('scope()', () => {
  test('frees all but what it returns, at once', () => {
    let kept: T.Tensor | undefined;
    const left = leftBy(() => {
      kept = T.scope(() => {
        const x = T.add(made(), made());
        made();
        return T.square(x);
      });
    });
    assert.equal(left, 1);
    assert.equal(kept!.storage.released, false);
    kept!.dispose();
  });

  test('finds tensors in arrays, maps and plain objects', () => {
    let result: { a: T.Tensor[]; m: Map<string, T.Tensor>; o: { deep: { t: T.Tensor } }; n: number } | undefined;
    const left = leftBy(() => {
      result = T.scope(() => {
        made();
        return { a: [made(), made()], m: new Map([['x', made()]]), o: { deep: { t: made() } }, n: 3 };
      });
    });
    assert.equal(left, 4);
    for (const t of [...result!.a, result!.m.get('x')!, result!.o.deep.t]) t.dispose();
  });

  test('a returned view keeps the values that it shows', () => {
    let view: T.Tensor | undefined;
    assert.equal(
      leftBy(() => void (view = T.scope(() => T.reshape(made(6), [2, 3])))),
      1,
    );
    assert.equal(view!.storage.released, false);
    view!.dispose();
  });

  test('what an inner scope returns passes to the outer one', () => {
    const left = leftBy(() => {
      T.scope(() => {
        const inner = T.scope(() => [made(), made()]);
        assert.ok(inner.every((t) => !t.storage.released));
        made();
      });
    });
    assert.equal(left, 0);
  });

  test('keep() outlives the scope, parameter() too', () => {
    const kept: T.Tensor[] = [];
    assert.equal(
      leftBy(() =>
        T.scope(() => {
          kept.push(
            made().keep(),
            T.scope(() => made().parameter()),
          );
          made();
        }),
      ),
      2,
    );
    for (const t of kept) t.dispose();
  });

  test('dispose() inside and after a scope frees once', () => {
    assert.equal(
      leftBy(() => {
        const t = T.scope(() => {
          const early = made();
          early.dispose();
          early.dispose();
          return made();
        });
        t.dispose();
        t.dispose();
      }),
      0,
    );
  });

  test('frees everything when its function throws', () => {
    const left = leftBy(() => {
      assert.throws(
        () =>
          T.scope(() => {
            made();
            T.scope(() => made());
            throw new Error('inside');
          }),
        /inside/,
      );
    });
    assert.equal(left, 0);
    // The scope around it is the current one again.
    assert.equal(
      leftBy(() => T.scope(() => void made())),
      0,
    );
  });

  test('refuses an asynchronous function and frees what it made', async () => {
    let pending: Promise<void> | undefined;
    const left = leftBy(() => {
      assert.throws(
        () =>
          T.scope(() => {
            made();
            return (pending = Promise.resolve());
          }),
        /synchronous/,
      );
    });
    await pending;
    assert.equal(left, 0);
  });

  test('gradients of a step die with it', () => {
    const w = T.scope(() => T.zeros(device, [4, 4]).parameter());
    const left = leftBy(() => {
      for (let k = 0; k < 20; k++)
        T.scope(() => {
          const y = T.sum(T.square(T.matmul(T.zeros(device, [3, 4]), w)));
          const [g] = T.gradients(y, [w]);
          assert.deepEqual(g.shape, [4, 4]);
        });
    });
    assert.equal(left, 0);
    w.dispose();
  });
});

describe('misuse', () => {
  test('using a tensor whose scope has ended', () => {
    let gone: T.Tensor | undefined;
    T.scope(() => void (gone = made()));
    assert.throws(
      () => T.square(gone!),
      (e: Error) => e instanceof AnsatzError && /square: input 0 was freed/.test(e.message),
    );
    assert.throws(() => T.add(made(), gone!), /add: input 1 was freed/);
  });

  test('operands on different devices', () => {
    T.scope(() => {
      const other = T.zeros(new RefDevice(), [2]);
      assert.throws(
        () => T.add(made(), other),
        (e: Error) => e instanceof AnsatzError && /input 1 is on ref, the first on meta/.test(e.message),
      );
    });
  });

  test('host data inside a captured step', () => {
    assert.throws(
      () => T.capture(device, () => T.Tensor.from(device, [1], [1])),
      /host data was written inside a captured step/,
    );
    // The recorder is gone: the next capture works.
    T.capture(device, () => void made()).dispose();
  });

  test('captures inside captures, traces inside captures, asynchronous captures', () => {
    assert.throws(() => T.capture(device, () => T.capture(device, () => made())), /cannot be nested/);
    assert.throws(() => T.capture(device, () => T.trace(() => made())), /trace\(\) cannot run inside capture/);
    assert.throws(() => T.capture(device, async () => made()), /synchronous/);
    assert.equal(
      leftBy(() => T.scope(() => void T.trace(() => made()))),
      0,
    );
  });
});

describe('the garbage collector', () => {
  setFlagsFromString('--expose-gc');
  const gc = runInNewContext('gc') as () => void;
  const settle = async (): Promise<void> => {
    for (let k = 0; k < 5; k++) {
      gc();
      await new Promise((done) => setTimeout(done, 5));
    }
  };

  test('frees tensors that were made outside any scope and are no longer reachable', async () => {
    const before = device.live.size;
    (() => {
      for (let k = 0; k < 50; k++) made();
    })();
    await settle();
    assert.ok(device.live.size - before < 50, `${device.live.size - before} of 50 are still live`);
  });

  test('is not how scopes free: nothing waits for it, and nothing is freed twice', async () => {
    assert.equal(
      leftBy(() => {
        for (let k = 0; k < 50; k++) T.scope(() => void made());
      }),
      0,
    );
    const kept = T.scope(() => made());
    kept.dispose();
    await settle(); // a second release would throw in Watched.release
    assert.equal(kept.storage.released, true);
  });
});
