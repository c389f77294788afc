/** The pools of pages that a model's layers read and write, and how passes hand them out. */
import type { Device } from '../../backend/device.ts';
import { MetaDevice } from '../../backend/meta/device.ts';
import type { Model } from '../../model/model.ts';
import { forwardContext, initialise, type RowPass, type RowState } from '../../nn/index.ts';
import {
  type CacheFormat,
  noGrad,
  pageBytes,
  type RowIndex,
  scope,
  type Tensor,
  type Watcher,
  watch,
  zeros,
} from '../../tensor/index.ts';

/** What a layer keeps of each token. */
export type PoolRequest =
  | { readonly kind: 'keyValues'; readonly kvHeads: number; readonly width: number }
  | { readonly kind: 'vectors'; readonly width: number; readonly each: number };

/** In the order in which layers ask: for their own tokens, and for what an encoder has read. */
export interface PoolRequests {
  readonly own: readonly PoolRequest[];
  readonly memory: readonly PoolRequest[];
  /** How many constants of their parameters they want. */
  readonly constants: number;
}

export const poolBytes = (r: PoolRequest, page: number, format: CacheFormat): number =>
  r.kind === 'vectors' ? r.width * r.each * 4 : pageBytes(r.kvHeads, r.width, page, format);

/** Bytes of a page of all layers. */
export const bytesOf = (requests: readonly PoolRequest[], page: number, format: CacheFormat): number =>
  requests.reduce((n, r) => n + poolBytes(r, page, format), 0);

/** Index tensors for up to `rows` rows over a page table. */
export const indexOn = (device: Device, rows: number, sequences: number, maxPages: number, page: number): RowIndex => ({
  table: zeros(device, [sequences, maxPages], 'i32').keep(),
  sequence: zeros(device, [rows], 'i32').keep(),
  position: zeros(device, [rows], 'i32').keep(),
  reach: zeros(device, [rows], 'i32').keep(),
  page,
});

const asked = new WeakMap<Model, Map<number, PoolRequests>>();

/** Which pools a model's layers want; found once a model. */
export function poolsOf(model: Model, page = 32): PoolRequests {
  let known = asked.get(model);
  if (!known) asked.set(model, (known = new Map()));
  let requests = known.get(page);
  if (!requests) known.set(page, (requests = askFor(model, page)));
  return requests;
}

/** What a pass on a device without values shows of itself. */
export interface Sketch extends PoolRequests {
  /** By memory: whose pool it is, or that it is a constant. */
  readonly holds: ReadonlyMap<number, 'own' | 'memory' | 'constant'>;
}

const askFor = (model: Model, page: number): PoolRequests => {
  const { own, memory, constants } = sketch(model, page);
  return { own, memory, constants };
};

/** Runs a pass of one row on a device without values and notes what layers ask for. */
export function sketch(model: Model, page: number, format: CacheFormat = 'f32', see?: Watcher): Sketch {
  const device = new MetaDevice();
  const own: PoolRequest[] = [];
  const memory: PoolRequest[] = [];
  const holds = new Map<number, 'own' | 'memory' | 'constant'>();
  let constants = 0;
  scope(() => {
    const index = indexOn(device, 1, 1, 1, page);
    const into = (list: PoolRequest[]): RowState => {
      const pool = (t: Tensor): Tensor => {
        holds.set(t.storage.memory.id, list === own ? 'own' : 'memory');
        return t;
      };
      return {
        index,
        keyValues: (kvHeads, width) => {
          list.push({ kind: 'keyValues', kvHeads, width });
          return { pool: pool(zeros(device, [1, pageBytes(kvHeads, width, page, format)], 'u8')), format };
        },
        vectors: (width, each = page) => {
          list.push({ kind: 'vectors', width, each });
          return pool(zeros(device, [1, each, width]));
        },
      };
    };
    const rows: RowPass = {
      ...into(own),
      constant: (make) => {
        constants++;
        const made = make();
        holds.set(made.storage.memory.id, 'constant');
        return made;
      },
      memory: model.encoder ? into(memory) : null,
      seen: 1,
    };
    const params = initialise(model, device, 0);
    model.prepare(device);
    const inputs = zeros(device, [1, 1], 'i32');
    const batch = { inputs, segments: inputs, positions: inputs };
    const pass = (): Tensor => model.hidden(params, batch, forwardContext({ device, compute: 'f32', rows }));
    noGrad(() => (see ? watch(see, pass) : pass()));
  });
  return { own, memory, constants, holds };
}

/** The pools of some layers, with room for `pages` pages. */
export class Pools {
  readonly requests: readonly PoolRequest[];
  readonly tensors: readonly Tensor[];
  private readonly format: CacheFormat;

  constructor(device: Device, requests: readonly PoolRequest[], pages: number, page: number, format: CacheFormat) {
    this.requests = requests;
    this.format = format;
    this.tensors = requests.map((r) =>
      r.kind === 'vectors'
        ? zeros(device, [pages, r.each, r.width]).keep()
        : zeros(device, [pages, poolBytes(r, page, format)], 'u8').keep(),
    );
  }

  /** Hands the pools out in the order in which a pass asks for them. */
  handOut(): Pick<RowState, 'keyValues' | 'vectors'> {
    let next = 0;
    const take = (kind: PoolRequest['kind']): Tensor => {
      if (this.requests[next]?.kind !== kind) throw new Error('layers ask for other state than they did before');
      return this.tensors[next++];
    };
    return {
      keyValues: () => ({ pool: take('keyValues'), format: this.format }),
      vectors: () => take('vectors'),
    };
  }

  dispose(): void {
    for (const t of this.tensors) t.dispose();
  }
}
