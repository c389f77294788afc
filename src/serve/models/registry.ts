/** Models by name. Runs that the server was given stay open; adapted ones are opened when somebody asks for them. */
import { openRun } from '../../infer/load.ts';
import { ApiError, noModel } from '../http/errors.ts';
import { type ModelInfo, ServedModel, type ServingOptions } from './served.ts';

/** A model in use: it stays open until it is released. */
export interface Lease {
  readonly model: ServedModel;
  release(): void;
}

interface Tuned {
  readonly info: ModelInfo;
  /** Its run folder. */
  readonly path: string;
  /** Its checkpoint; by default the newest. */
  readonly step?: number;
  opened: Promise<ServedModel> | null;
  /** Requests that use it or wait for it, and when the last one began. */
  users: number;
  used: number;
}

/** Adapted models that stay open, and that may be in use at a time. */
const MAX_OPEN = 4;
const MAX_BUSY = 8;

export class Registry {
  private readonly own = new Map<string, ServedModel>();
  private readonly tuned = new Map<string, Tuned>();
  private readonly options: ServingOptions;
  private clock = 0;

  constructor(options: ServingOptions) {
    this.options = options;
  }

  add(model: ServedModel): void {
    this.own.set(model.info.name, model);
  }

  addTuned(info: ModelInfo, path: string, step?: number): void {
    if (!this.tuned.has(info.name)) this.tuned.set(info.name, { info, path, step, opened: null, users: 0, used: 0 });
  }

  list(): ModelInfo[] {
    return [...this.own.values(), ...this.tuned.values()].flatMap((m) => (m.info.hidden ? [] : [m.info]));
  }

  info(name: string): ModelInfo | undefined {
    return (this.own.get(name) ?? this.tuned.get(name))?.info;
  }

  /** The run folder of a model. */
  pathOf(name: string): string | undefined {
    return this.own.get(name)?.opened.run.path ?? this.tuned.get(name)?.path;
  }

  /** Models that are open now. */
  async open(): Promise<ServedModel[]> {
    const tuned = [...this.tuned.values()].flatMap((t) => (t.opened ? [t.opened.catch(() => null)] : []));
    return [...this.own.values(), ...(await Promise.all(tuned)).flatMap((m) => (m ? [m] : []))];
  }

  /** @throws ApiError 404 when there is no such model. */
  async lease(name: string): Promise<Lease> {
    const own = this.own.get(name);
    if (own) return { model: own, release: () => {} };
    const tuned = this.tuned.get(name);
    if (!tuned) throw noModel(name);
    tuned.users++;
    let held = true;
    const release = (): void => {
      if (held && --tuned.users === 0) void this.closeIdle(MAX_OPEN);
      held = false;
    };
    try {
      return { model: await this.openTuned(tuned), release };
    } catch (error) {
      release();
      throw error;
    }
  }

  /** Forgets an adapted model; requests that use it end. */
  async remove(name: string): Promise<boolean> {
    const tuned = this.tuned.get(name);
    if (!tuned) return false;
    this.tuned.delete(name);
    await tuned.opened?.then((m) => m.close()).catch(() => {});
    return true;
  }

  async close(): Promise<void> {
    const open = await this.open();
    this.own.clear();
    this.tuned.clear();
    for (const model of open) await model.close();
  }

  private openTuned(tuned: Tuned): Promise<ServedModel> {
    tuned.used = ++this.clock;
    if (tuned.opened) return tuned.opened;
    const busy = this.openOnes().filter((t) => t.users > 0).length;
    if (busy >= MAX_BUSY)
      throw new ApiError(503, `The server is overloaded: ${busy} adapted models are in use.`, {
        code: 'overloaded',
        headers: { 'retry-after': '1', 'retry-after-ms': '1000' },
      });
    tuned.opened = this.load(tuned).catch((error) => {
      tuned.opened = null;
      throw error;
    });
    return tuned.opened;
  }

  private async load({ info, path, step }: Tuned): Promise<ServedModel> {
    await this.closeIdle(MAX_OPEN);
    return new ServedModel(info, await openRun(path, { step }), this.options);
  }

  /** Those used longest ago first. */
  private openOnes(): Tuned[] {
    return [...this.tuned.values()].filter((t) => t.opened !== null).sort((a, b) => a.used - b.used);
  }

  /** Closes adapted models that nobody uses until `most` are open. */
  private async closeIdle(most: number): Promise<void> {
    const open = this.openOnes();
    const idle = open.filter((t) => t.users === 0);
    for (const t of idle.slice(0, Math.max(0, open.length - most))) {
      const { opened } = t;
      t.opened = null;
      await opened!.then((m) => m.close()).catch(() => {});
    }
  }
}
