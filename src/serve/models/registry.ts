/** Models by name. Runs that the server was given stay open; adapted ones are opened when somebody asks for them. */
import { ApiError, noModel } from '../http/errors.ts';
import { baseOf, open } from './opening.ts';
import type { ModelInfo, ServedModel, ServingOptions } from './served.ts';

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
  /** Whether it is a few matrices beside a model that is open anyway. */
  readonly light: boolean;
  /** Requests that use it or wait for it, and when the last one began. */
  users: number;
  used: number;
}

/** Adapted models that stay open, and that may be in use at a time: those with all weights, and those of few. */
const MOST = { open: 4, busy: 8 };
const MOST_LIGHT = { open: 64, busy: 256 };

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
    if (this.tuned.has(info.name)) return;
    const light = baseOf(path, [...this.own.values()]) !== undefined;
    this.tuned.set(info.name, { info, path, step, light, opened: null, users: 0, used: 0 });
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

  /** The checkpoint that a model stands for; undefined: the newest of its run. */
  stepOf(name: string): number | undefined {
    return this.tuned.get(name)?.step;
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
      if (held && --tuned.users === 0) void this.closeIdle(tuned.light);
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
    const all = await this.open();
    this.own.clear();
    this.tuned.clear();
    // Adapters before the models that they stand beside.
    for (const model of all.reverse()) await model.close();
  }

  private openTuned(tuned: Tuned): Promise<ServedModel> {
    tuned.used = ++this.clock;
    if (tuned.opened) return tuned.opened;
    const busy = this.openOnes(tuned.light).filter((t) => t.users > 0).length;
    if (busy >= (tuned.light ? MOST_LIGHT : MOST).busy)
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

  private async load({ info, path, step, light }: Tuned): Promise<ServedModel> {
    await this.closeIdle(light);
    return open(info, path, [...this.own.values()], this.options, { step });
  }

  /** Those used longest ago first. */
  private openOnes(light: boolean): Tuned[] {
    return [...this.tuned.values()]
      .filter((t) => t.opened !== null && t.light === light)
      .sort((a, b) => a.used - b.used);
  }

  /** Closes adapted models that nobody uses until no more are open than may be. */
  private async closeIdle(light: boolean): Promise<void> {
    const all = this.openOnes(light);
    const idle = all.filter((t) => t.users === 0);
    for (const t of idle.slice(0, Math.max(0, all.length - (light ? MOST_LIGHT : MOST).open))) {
      const { opened } = t;
      t.opened = null;
      await opened!.then((m) => m.close()).catch(() => {});
    }
  }
}
