/** The same model at another width or depth: every size that grows with it is multiplied. */
import { AnsatzError } from '../backend/errors.ts';
import { parseTrainConfig, type TrainConfig } from './config.ts';

export interface Growth {
  /** Heads get more of the same width, or stay as many and get wider. */
  readonly grow?: 'heads' | 'headWidth';
  /** Dotted fields of the model that grow too ("ffn.rank"). */
  readonly fields?: readonly string[];
}

type Plain = { [key: string]: unknown };
const isPlain = (v: unknown): v is Plain => typeof v === 'object' && v !== null && !Array.isArray(v);

/** A config with `model.width` = width; units and heads in proportion. */
export function atWidth(config: TrainConfig, width: number, { grow = 'heads', fields = [] }: Growth = {}): TrainConfig {
  const ratio = width / config.model.width;
  const names = new Set(['hidden', ...(grow === 'heads' ? ['heads', 'kvHeads'] : ['headWidth'])]);
  const scaled = (value: unknown, path: string): number => {
    const n = (value as number) * ratio;
    if (!Number.isInteger(n))
      throw new AnsatzError(`width ${width}: ${path} would be ${n}`, {
        hint: `use widths that are whole multiples of ${config.model.width}, or a smaller model`,
      });
    return n;
  };
  const walk = (value: unknown, path: string): unknown => {
    if (Array.isArray(value)) return value.map((v, k) => walk(v, `${path}.${k}`));
    if (!isPlain(value)) return value;
    const entries = Object.entries(value).map(([key, v]): [string, unknown] => {
      const at = path ? `${path}.${key}` : key;
      // Names count inside of slots; the model's own fields are the width and those that were named.
      const grows = typeof v === 'number' && ((path !== '' && names.has(key)) || at === 'width' || fields.includes(at));
      return [key, grows ? scaled(v, at) : at === 'parametrisation' ? v : walk(v, at)];
    });
    return Object.fromEntries(entries);
  };
  return parseTrainConfig({ ...config, model: walk(config.model, '') });
}

export const atDepth = (config: TrainConfig, depth: number): TrainConfig =>
  parseTrainConfig({ ...config, model: { ...config.model, depth } });
