// Series of numbers over steps: smoothing, thinning, and the ticks of axes. The terminal and the reports draw from here.
import { formatCount } from './units.ts';

export interface Point {
  x: number;
  y: number;
}

/**
 * Exponential moving average whose memory grows with the series, to a tenth of it and at most 1 / (1 - decay) values:
 * a fixed memory would drag the plunge of the first steps along and show a loss that was never there.
 */
export class Smoother {
  readonly #decay: number;
  #count = 0;
  value = Number.NaN;

  constructor(decay = 0.95) {
    this.#decay = decay;
  }

  add(value: number): number {
    if (!Number.isFinite(value)) return this.value;
    const memory = Math.min(1 / (1 - this.#decay), 1 + this.#count / 10);
    this.value = this.#count++ === 0 ? value : this.value + (value - this.value) / memory;
    return this.value;
  }
}

export function smoothed(points: readonly Point[], decay = 0.95): Point[] {
  const smoother = new Smoother(decay);
  return points.map(({ x, y }) => ({ x, y: smoother.add(y) }));
}

/**
 * Points in order of x; when there are too many, neighbours are averaged, so that a run of a million steps is drawn as
 * fast as one of a thousand.
 */
export class ThinnedSeries {
  readonly #limit: number;
  #points: Point[] = [];
  #stride = 1;
  #pending: Point[] = [];

  constructor(limit = 2048) {
    this.#limit = limit;
  }

  add(x: number, y: number): void {
    this.#pending.push({ x, y });
    if (this.#pending.length < this.#stride) return;
    this.#points.push(average(this.#pending));
    this.#pending = [];
    if (this.#points.length < this.#limit) return;
    const merged: Point[] = [];
    for (let k = 0; k < this.#points.length; k += 2) merged.push(average(this.#points.slice(k, k + 2)));
    this.#points = merged;
    this.#stride *= 2;
  }

  /** Forgets what lies beyond x. */
  rewind(x: number): void {
    this.#points = this.#points.filter((point) => point.x <= x);
    this.#pending = this.#pending.filter((point) => point.x <= x);
  }

  get points(): Point[] {
    return this.#pending.length === 0 ? this.#points : [...this.#points, average(this.#pending)];
  }
}

function average(points: readonly Point[]): Point {
  const sum = points.reduce((a, b) => ({ x: a.x + b.x, y: a.y + b.y }));
  return { x: sum.x / points.length, y: sum.y / points.length };
}

/** Multiples of 1, 2 or 5 times a power of ten inside a range: about `count` of them, two at least. */
export function niceTicks(low: number, high: number, count: number): number[] {
  if (!(high > low)) return [low];
  for (let wanted = Math.max(2, count); ; wanted++) {
    const raw = (high - low) / (wanted - 1);
    const power = 10 ** Math.floor(Math.log10(raw));
    const off = (factor: number) => Math.abs(Math.log((factor * power) / raw));
    const step = [1, 2, 5, 10].reduce((a, b) => (off(b) < off(a) ? b : a)) * power;
    const ticks: number[] = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) {
      ticks.push(Number((k * step).toPrecision(12)));
    }
    // A range so narrow that rounding joins its ticks has no round numbers to offer.
    if (new Set(ticks).size >= 2) return ticks;
    if (wanted > count + 8) return [low];
  }
}

/** Labels with as many decimals as tell the ticks apart. */
export function tickLabels(ticks: readonly number[]): string[] {
  if (ticks.some((tick) => Math.abs(tick) >= 10_000)) return ticks.map(formatCount);
  const gap = ticks.length > 1 ? Math.abs(ticks[1] - ticks[0]) : Math.abs(ticks[0]) || 1;
  const decimals = Math.min(8, Math.max(0, -Math.floor(Math.log10(gap) + 1e-9)));
  return ticks.map((tick) => tick.toFixed(ticks.length > 1 ? decimals : decimals + 2));
}

export function extent(values: readonly number[]): [number, number] {
  let low = Number.POSITIVE_INFINITY;
  let high = Number.NEGATIVE_INFINITY;
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return [low, high];
}
