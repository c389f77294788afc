/** Small multiples of line charts in one SVG file that stands by itself. */

import type { Point } from '../../train/run/series.ts';
import { type ChartSeries, lineChart } from '../../train/run/svg-chart.ts';

export interface Panel {
  readonly title: string;
  readonly lines: readonly { readonly points: readonly Point[]; readonly label: string }[];
}

const SIZE = { width: 320, height: 220, title: 26, columns: 3, legend: 24 };

/** From a light to a dark blue, in the order of the lines. */
const shade = (k: number, n: number): string => `hsl(215 70% ${Math.round(72 - (44 * k) / Math.max(1, n - 1))}%)`;

const escaped = (text: string): string => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');

export function panels(title: string, list: readonly Panel[]): string {
  const columns = Math.min(SIZE.columns, list.length);
  const rows = Math.ceil(list.length / columns);
  const most = Math.max(...list.map((p) => p.lines.length));
  const [width, cell] = [Math.max(columns * SIZE.width, 640), SIZE.height + SIZE.title];
  const height = SIZE.legend * 2 + rows * cell;
  const styles = Array.from({ length: most }, (_, k) => `.l${k}{fill:none;stroke:${shade(k, most)};stroke-width:1.6}`);
  const body = list.map((panel, k) => {
    const [x, y] = [(k % columns) * SIZE.width, SIZE.legend * 2 + Math.floor(k / columns) * cell];
    const series = panel.lines.map(
      (line, j): ChartSeries => ({ points: line.points, className: `l${j}`, kind: 'line' }),
    );
    const chart = lineChart({ title: panel.title, width: SIZE.width, height: SIZE.height, series });
    const placed = chart.replace(
      '<svg ',
      `<svg x="${x}" y="${y + SIZE.title}" width="${SIZE.width}" height="${SIZE.height}" `,
    );
    return `<text class="t" x="${x + 58}" y="${y + 18}">${escaped(panel.title)}</text>\n${placed}`;
  });
  const longest = list.find((p) => p.lines.length === most)!;
  const legend = longest.lines.map(
    (line, k) => `<text x="${58 + k * 90}" y="42" style="fill:${shade(k, most)}">${escaped(line.label)}</text>`,
  );
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">`,
    `<style>text{font:11px sans-serif;fill:#555}.t{font-weight:600;fill:#222}.grid{stroke:#e4e4e4}${styles.join('')}</style>`,
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    `<text class="t" x="58" y="22">${escaped(title)}</text>`,
    ...legend,
    ...body,
    '</svg>',
    '',
  ].join('\n');
}
