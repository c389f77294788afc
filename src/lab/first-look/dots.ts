/** A dot plot of differences with their intervals, as an SVG file that stands by itself. */
import { median } from '../statistics.ts';

export interface DotRow {
  readonly label: string;
  /** The first row of a group has its title. */
  readonly group?: string;
  readonly dots: readonly { readonly value: number; readonly half: number; readonly series: number }[];
}

export interface DotPlot {
  readonly title: string;
  readonly axis: string;
  readonly series: readonly string[];
  readonly rows: readonly DotRow[];
}

const SIZE = { width: 820, label: 190, right: 24, row: 20, group: 24, top: 74, bottom: 44 };
const COLOURS = ['#1f5fa8', '#c2571a'];
const escaped = (text: string): string => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');

/** A step of 1, 2 or 5 times a power of ten, for about `count` ticks. */
export function tickStep(range: number, count: number): number {
  const rough = range / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * ([1, 2, 5].find((m) => m * power >= rough) ?? 10);
}

/** What lies far outside is drawn at the border with an arrow: one broken arm must not flatten the others. */
function rangeOf(rows: readonly DotRow[]): [number, number] {
  const all = rows.flatMap((r) => r.dots).filter((d) => Number.isFinite(d.value));
  if (all.length === 0) return [-1, 1];
  const usual = 8 * median(all.map((d) => Math.abs(d.value) + (Number.isFinite(d.half) ? d.half : 0)));
  const reach = (sign: number): number =>
    Math.min(usual, Math.max(0, ...all.map((d) => sign * d.value + (Number.isFinite(d.half) ? d.half : 0))));
  const air = 0.05 * (reach(1) + reach(-1)) || 1e-3;
  return [-reach(-1) - air, reach(1) + air];
}

export function dotPlot({ title, axis, series, rows }: DotPlot): string {
  const [low, high] = rangeOf(rows);
  const inner = SIZE.width - SIZE.label - SIZE.right;
  const px = (v: number): number => SIZE.label + ((Math.min(high, Math.max(low, v)) - low) / (high - low)) * inner;
  const body: string[] = [];
  let y = SIZE.top;
  const mark = (d: DotRow['dots'][number], at: number): string => {
    const colour = COLOURS[d.series];
    const outside = d.value < low || d.value > high;
    const half = Number.isFinite(d.half) ? d.half : 0;
    const [a, b, x] = [px(d.value - half), px(d.value + half), px(d.value)].map((v) => v.toFixed(1));
    const line = `<line x1="${a}" x2="${b}" y1="${at}" y2="${at}" stroke="${colour}" stroke-width="1.5"/>`;
    if (outside) {
      const s = d.value > high ? 1 : -1;
      const points = `${x},${at} ${px(d.value) - 8 * s},${at - 4} ${px(d.value) - 8 * s},${at + 4}`;
      return `<polygon points="${points}" fill="${colour}"/>`;
    }
    return `${line}<circle cx="${x}" cy="${at}" r="3.5" fill="${d.series === 0 ? colour : '#fff'}" stroke="${colour}" stroke-width="1.5"/>`;
  };
  for (const row of rows) {
    if (row.group) {
      y += SIZE.group;
      body.push(`<text class="g" x="12" y="${y - 6}">${escaped(row.group)}</text>`);
    }
    const centre = y + SIZE.row / 2;
    body.push(`<text x="${SIZE.label - 10}" y="${centre + 4}" text-anchor="end">${escaped(row.label)}</text>`);
    if (row.dots.length === 0) body.push(`<text class="none" x="${px(0) + 8}" y="${centre + 4}">no result</text>`);
    for (const d of row.dots) body.push(mark(d, centre + (row.dots.length > 1 ? (d.series === 0 ? -3.5 : 3.5) : 0)));
    y += SIZE.row;
  }
  const step = tickStep(high - low, 8);
  const digits = Math.max(0, -Math.floor(Math.log10(step)));
  const ticks: string[] = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) {
    const x = px(k * step).toFixed(1);
    ticks.push(
      `<line x1="${x}" x2="${x}" y1="${SIZE.top}" y2="${y + 4}" stroke="${k === 0 ? '#444' : '#e4e4e4'}"/>`,
      `<text x="${x}" y="${y + 20}" text-anchor="middle">${k > 0 ? '+' : ''}${(k * step).toFixed(digits)}</text>`,
    );
  }
  const legend = series.map(
    (name, k) =>
      `<circle cx="${SIZE.label + 6 + k * 190}" cy="48" r="3.5" fill="${k === 0 ? COLOURS[k] : '#fff'}" stroke="${COLOURS[k]}" stroke-width="1.5"/>` +
      `<text x="${SIZE.label + 16 + k * 190}" y="52">${escaped(name)}</text>`,
  );
  const height = y + SIZE.bottom;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${SIZE.width}" height="${height}" viewBox="0 0 ${SIZE.width} ${height}">`,
    `<title>${escaped(title)}</title>`,
    '<style>text{font:12px sans-serif;fill:#333}.t{font-size:14px;font-weight:600;fill:#111}.g{font-weight:600;fill:#111}.none{fill:#999}</style>',
    `<rect width="${SIZE.width}" height="${height}" fill="#fff"/>`,
    `<text class="t" x="12" y="24">${escaped(title)}</text>`,
    ...legend,
    ...ticks,
    ...body,
    `<text x="${SIZE.label + inner / 2}" y="${y + 38}" text-anchor="middle">${escaped(axis)}</text>`,
    '</svg>',
    '',
  ].join('\n');
}
