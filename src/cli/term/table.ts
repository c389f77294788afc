// Aligned tables: numbers to the right, text to the left, the widest text column gives way on a narrow terminal.
import { displayWidth, pad, truncate } from './format.ts';

export interface Column {
  title: string;
  /** Text is aligned left and may be cut; numbers are aligned right and never cut. */
  align?: 'left' | 'right';
}

export interface TableOptions {
  width?: number;
  gap?: number;
  /** Applied to the line of titles (bold, usually). */
  heading?: (text: string) => string;
  ellipsis?: string;
}

export function table(columns: readonly Column[], rows: readonly (readonly string[])[], options: TableOptions = {}) {
  const { width = Number.POSITIVE_INFINITY, gap = 2, heading = (text: string) => text, ellipsis = '…' } = options;
  const widths = columns.map(({ title }, k) =>
    Math.max(displayWidth(title), ...rows.map((row) => displayWidth(row[k] ?? ''))),
  );
  const total = () => widths.reduce((sum, w) => sum + w, 0) + gap * (widths.length - 1);
  const shrinkable = columns.flatMap(({ align }, k) => (align === 'right' ? [] : [k]));
  while (total() > width && shrinkable.length > 0) {
    const widest = shrinkable.reduce((a, b) => (widths[b] > widths[a] ? b : a));
    if (widths[widest] <= 8) break;
    widths[widest]--;
  }
  const line = (cells: readonly string[]) =>
    columns
      .map(({ align = 'left' }, k) => pad(truncate(cells[k] ?? '', widths[k], ellipsis), widths[k], align))
      .join(' '.repeat(gap))
      .trimEnd();
  const titles = columns.some(({ title }) => title !== '') ? [heading(line(columns.map(({ title }) => title)))] : [];
  return [...titles, ...rows.map(line)];
}

/** Name and value, one pair a line. */
export function pairs(entries: readonly (readonly [string, string])[], options: TableOptions = {}): string[] {
  return table([{ title: '' }, { title: '' }], entries, options);
}
