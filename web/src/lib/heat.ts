/** The numbers of a heat-map: layers down, experts or blocks of units across. */
import type { Layer } from './inside.ts';

export interface Row {
  readonly name: string;
  readonly layer: Layer;
  /** One a column, 0 to 1. */
  readonly values: Float64Array;
}

/** "blocks.3.ffn" is block 3; of an encoder, "e3". */
export function shortName(layer: string): string {
  const [, encoder, k] = /^(encoder\.)?blocks\.(\d+)\./.exec(layer) ?? [];
  if (k === undefined) return layer;
  const inner = /\.ffn\.(?!experts$)(.+)$/.exec(layer)?.[1];
  return `${encoder ? 'e' : ''}${k}${inner ? ` ${inner}` : ''}`;
}

export type Measure = 'fired' | 'strength';

/**
 * Of one token, or over all: the share of tokens that an expert served, the mean share of a block's units that fired, or
 * their mean magnitude.
 */
export function rowsOf(layers: readonly Layer[], k: number | null, measure: Measure): Row[] {
  return layers.map((layer) => {
    const { columns, kind } = layer;
    const cells = measure === 'strength' && layer.strength ? layer.strength : layer.cells;
    const values = new Float64Array(columns);
    const tokens = cells.length / columns;
    if (k !== null && k < tokens) for (let c = 0; c < columns; c++) values[c] = cells[k * columns + c] / 255;
    else
      for (let t = 0; t < tokens; t++)
        for (let c = 0; c < columns; c++) {
          const v = cells[t * columns + c];
          values[c] += (kind === 'experts' ? +(v > 0) : v / 255) / tokens;
        }
    return { name: shortName(layer.layer), layer, values };
  });
}

export const largest = (rows: readonly Row[]): number => Math.max(1e-9, ...rows.map((r) => Math.max(...r.values)));

/** What a column stands for. */
export function columnName({ kind, block, count }: Layer, c: number): string {
  if (kind === 'experts') return `expert ${c}`;
  const last = Math.min(count, (c + 1) * block) - 1;
  return last === c * block ? `unit ${last}` : `units ${c * block}–${last}`;
}

const average = (list: readonly number[]): number => list.reduce((a, b) => a + b, 0) / Math.max(1, list.length);

/** One line about layers of one kind: "2 of 8 experts a token in 4 layers". */
export function summary(layers: readonly Layer[]): string {
  const [first] = layers;
  if (!first) return '';
  const active = average(layers.map((l) => average(l.active)));
  const where = layers.length === 1 ? 'in one layer' : `in ${layers.length} layers`;
  if (first.kind === 'experts') {
    const counts = [...new Set(layers.map((l) => l.count))].join('/');
    return `${Number.isInteger(active) ? active : active.toFixed(1)} of ${counts} experts a token ${where}`;
  }
  if (active > 0.999) return `every unit works ${where}`;
  return `${(100 * active).toPrecision(active < 0.1 ? 2 : 3)}% of the units fire for a token ${where}`;
}
