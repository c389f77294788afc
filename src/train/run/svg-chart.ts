// Line charts as SVG text. Colours are CSS variables of the page (--ink, --faint, --grid, --line, --mark).
import { extent, niceTicks, type Point, tickLabels } from './series.ts';
import { formatCount } from './units.ts';

export interface ChartSeries {
  points: readonly Point[];
  /** CSS class that gives the stroke or fill. */
  className: string;
  kind: 'line' | 'marks';
}

export interface ChartOptions {
  title: string;
  width: number;
  height: number;
  series: readonly ChartSeries[];
  yRange?: readonly [number, number];
  yLabel?: (value: number) => string;
}

const MARGIN = { left: 58, right: 14, top: 12, bottom: 28 };

/** Empty when there is nothing to draw. */
export function lineChart({ title, width, height, series, yRange, yLabel }: ChartOptions): string {
  const points = series.flatMap((one) => one.points.filter(({ x, y }) => Number.isFinite(x) && Number.isFinite(y)));
  if (points.length < 2) return '';
  const [x0, x1] = extent(points.map((point) => point.x));
  const ys = yRange ?? extent(points.map((point) => point.y));
  const air = ys[1] > ys[0] ? (ys[1] - ys[0]) * 0.04 : Math.abs(ys[0]) * 0.1 || 1;
  const [y0, y1] = [ys[0] - air, ys[1] + air];
  const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
  const px = (x: number) => MARGIN.left + (x1 > x0 ? (x - x0) / (x1 - x0) : 0.5) * inner.width;
  const py = (y: number) => MARGIN.top + ((y1 - y) / (y1 - y0)) * inner.height;
  const at = ({ x, y }: Point) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`;

  const yTicks = niceTicks(y0, y1, Math.max(3, Math.round(inner.height / 45)));
  const labels = yLabel ? yTicks.map(yLabel) : tickLabels(yTicks);
  const grid = yTicks.map(
    (tick, k) =>
      `<line class="grid" x1="${MARGIN.left}" x2="${width - MARGIN.right}" y1="${py(tick).toFixed(1)}" y2="${py(tick).toFixed(1)}"/>` +
      `<text x="${MARGIN.left - 8}" y="${(py(tick) + 4).toFixed(1)}" text-anchor="end">${labels[k]}</text>`,
  );
  const bottom = height - MARGIN.bottom;
  const xTicks = niceTicks(x0, x1, Math.max(3, Math.round(inner.width / 110))).map(
    (tick) => `<text x="${px(tick).toFixed(1)}" y="${bottom + 18}" text-anchor="middle">${formatCount(tick)}</text>`,
  );
  const drawn = (one: ChartSeries) => one.points.filter(({ x, y }) => Number.isFinite(x) && Number.isFinite(y));
  const lines = series
    .filter(({ kind }) => kind === 'line')
    .map((one) => `<polyline class="${one.className}" points="${drawn(one).map(at).join(' ')}"/>`);
  // Marks are never clipped: half a circle on the edge would look like an error.
  const marks = series
    .filter(({ kind }) => kind === 'marks')
    .flatMap((one) => drawn(one).map((point) => [one.className, ...at(point).split(',')]))
    .map(([className, x, y]) => `<circle class="${className}" cx="${x}" cy="${y}" r="4"/>`);
  const clip = `c${title.replace(/\W/g, '')}`;
  return [
    `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${title} over steps">`,
    `<clipPath id="${clip}"><rect x="${MARGIN.left}" y="${MARGIN.top}" width="${inner.width}" height="${inner.height}"/></clipPath>`,
    ...grid,
    ...xTicks,
    `<g clip-path="url(#${clip})">${lines.join('')}</g>`,
    ...marks,
    '</svg>',
  ].join('\n');
}
