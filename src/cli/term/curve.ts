// Draws series into lines of text: a plot with labelled axes, in Braille dots (2 x 4 a cell) or plain ASCII (1 x 2).
import { extent, niceTicks, type Point, tickLabels } from '../../train/run/series.ts';
import { formatCount, pad } from './format.ts';

export interface Series {
  points: readonly Point[];
  /** A joined line, loose dots, or one glyph a point drawn over everything else. */
  kind: 'line' | 'dots' | 'marks';
  glyph?: string;
  paint?: (text: string) => string;
}

export interface CurveOptions {
  series: readonly Series[];
  /** Of the whole drawing, labels and axes included. */
  width: number;
  height: number;
  unicode?: boolean;
  /** Printed after the labels of the horizontal axis. */
  xName?: string;
  xRange?: readonly [number, number];
  /** Points outside are not drawn; lines leave through the edge. */
  yRange?: readonly [number, number];
  paintAxes?: (text: string) => string;
}

/** Later series are drawn over earlier ones. Too small a space, or nothing finite to draw, gives no lines. */
export function drawCurve(options: CurveOptions): string[] {
  const { series, width, height, unicode = true, xName = '', paintAxes = (text: string) => text } = options;
  const finite = series.flatMap(({ points }) => points.filter(({ x, y }) => Number.isFinite(x) && Number.isFinite(y)));
  const rows = height - 2;
  if (finite.length === 0 || rows < 2) return [];
  const xs = options.xRange ?? extent(finite.map((point) => point.x));
  const ys = options.yRange ?? padded(extent(finite.map((point) => point.y)), rows);
  const yTicks = niceTicks(ys[0], ys[1], Math.max(3, Math.floor(rows / 2.5)));
  const yLabels = tickLabels(yTicks);
  const margin = Math.max(...yLabels.map((label) => label.length)) + 1;
  const columns = width - margin - 1;
  if (columns < 4) return [];

  const fractionX = (x: number) => (xs[1] > xs[0] ? (x - xs[0]) / (xs[1] - xs[0]) : 0.5);
  const fractionY = (y: number) => (ys[1] > ys[0] ? (ys[1] - y) / (ys[1] - ys[0]) : 0.5);
  const cells: string[][] = Array.from({ length: rows }, () => new Array<string>(columns).fill(' '));
  for (const { points, kind, glyph, paint = (text: string) => text } of series) {
    const grid = new DotGrid(columns, rows, unicode);
    const place = ({ x, y }: Point): [number, number] => [
      Math.round(fractionX(x) * (grid.width - 1)),
      Math.round(fractionY(y) * (grid.height - 1)),
    ];
    if (kind === 'marks') {
      for (const point of points) {
        const column = Math.round(fractionX(point.x) * (columns - 1));
        const row = Math.round(fractionY(point.y) * (rows - 1));
        if (cells[row]?.[column] !== undefined) cells[row][column] = paint(glyph ?? (unicode ? '◆' : 'o'));
      }
      continue;
    }
    let previous: [number, number] | undefined;
    for (const point of points) {
      const here = Number.isFinite(point.x) && Number.isFinite(point.y) ? place(point) : undefined;
      if (here && kind === 'line' && previous) grid.line(previous, here);
      else if (here) grid.dot(...here);
      previous = here;
    }
    grid.each((row, column, character) => {
      cells[row][column] = paint(character);
    });
  }

  const labelAt = new Map(yTicks.map((tick, k) => [Math.round(fractionY(tick) * (rows - 1)), yLabels[k]]));
  const [tee, bar, corner, dash, cross] = unicode ? ['┤', '│', '└', '─', '┬'] : ['+', '|', '+', '-', '+'];
  const lines = cells.map((row, r) => {
    const label = labelAt.get(r);
    const axis = `${pad(label ?? '', margin - 1, 'right')} ${label === undefined ? bar : tee}`;
    return paintAxes(axis) + row.join('').trimEnd();
  });
  const { axis, labels } = horizontalAxis(xs, columns, xName, dash, cross);
  lines.push(paintAxes(' '.repeat(margin) + corner + axis));
  lines.push(paintAxes((' '.repeat(margin + 1) + labels).trimEnd()));
  return lines;
}

function horizontalAxis(xs: readonly [number, number], columns: number, name: string, dash: string, tick: string) {
  const axis = new Array<string>(columns).fill(dash);
  const ticks = niceTicks(xs[0], xs[1], Math.max(3, Math.floor(columns / 14)));
  let labels = '';
  for (const value of ticks) {
    const column = xs[1] > xs[0] ? Math.round(((value - xs[0]) / (xs[1] - xs[0])) * (columns - 1)) : 0;
    const text = formatCount(value);
    const start = Math.max(0, Math.min(columns - text.length, column - Math.floor(text.length / 2)));
    if (labels.length > 0 && start <= labels.length) continue;
    axis[column] = tick;
    labels = labels.padEnd(start) + text;
  }
  if (name !== '' && labels.length + 1 + name.length <= columns) labels += ` ${name}`;
  return { axis: axis.join(''), labels };
}

/** A grid of dots several to a character cell. */
class DotGrid {
  readonly width: number;
  readonly height: number;
  readonly #columns: number;
  readonly #perX: number;
  readonly #perY: number;
  readonly #bits: Uint8Array;
  readonly #unicode: boolean;

  constructor(columns: number, rows: number, unicode: boolean) {
    this.#perX = unicode ? 2 : 1;
    this.#perY = unicode ? 4 : 2;
    this.width = columns * this.#perX;
    this.height = rows * this.#perY;
    this.#columns = columns;
    this.#bits = new Uint8Array(columns * rows);
    this.#unicode = unicode;
  }

  dot(x: number, y: number): void {
    if (x < 0 || y < 0 || x >= this.width || y >= this.height) return;
    const cell = Math.floor(y / this.#perY) * this.#columns + Math.floor(x / this.#perX);
    this.#bits[cell] |= this.#unicode ? BRAILLE[y % 4][x % 2] : 1 << (y % 2);
  }

  line([x0, y0]: [number, number], [x1, y1]: [number, number]): void {
    // The bound only matters for a line that runs far out of the plot.
    const steps = Math.min(Math.max(Math.abs(x1 - x0), Math.abs(y1 - y0), 1), 10_000);
    for (let k = 0; k <= steps; k++) {
      this.dot(Math.round(x0 + ((x1 - x0) * k) / steps), Math.round(y0 + ((y1 - y0) * k) / steps));
    }
  }

  each(visit: (row: number, column: number, character: string) => void): void {
    for (let cell = 0; cell < this.#bits.length; cell++) {
      const bits = this.#bits[cell];
      if (bits === 0) continue;
      const character = this.#unicode ? String.fromCodePoint(0x2800 + bits) : [' ', "'", '.', ':'][bits];
      visit(Math.floor(cell / this.#columns), cell % this.#columns, character);
    }
  }
}

// Bit of each dot in the Braille Patterns block (Unicode 2800-28FF), by row and column.
const BRAILLE = [
  [0x01, 0x08],
  [0x02, 0x10],
  [0x04, 0x20],
  [0x40, 0x80],
];

/** Half a row of air below and above; a flat series is put in the middle of a range of its own size. */
function padded([low, high]: [number, number], rows: number): [number, number] {
  const air = high > low ? (high - low) / (2 * rows) : Math.abs(low) * 0.1 || 1;
  return [low - air, high + air];
}

/**
 * A vertical range for losses: the first plunge from the initial loss would flatten all that follows, so the top is
 * the 96th percentile once there are enough points. Marks are always inside.
 */
export function lossRange(points: readonly Point[], marks: readonly Point[], rows: number): [number, number] {
  const values = points.map(({ y }) => y).filter(Number.isFinite);
  const sorted = values.sort((a, b) => a - b);
  const top = sorted.length >= 50 ? sorted[Math.floor(sorted.length * 0.96)] : sorted.at(-1);
  const inside = [sorted[0], top, ...marks.map(({ y }) => y)].filter((y): y is number => Number.isFinite(y));
  return inside.length === 0 ? [0, 1] : padded(extent(inside), rows);
}
