/**
 * xPos: s(n, m) = sum_i zeta_i^((n-m)/B) Re(q_i k_i* e^(i(n-m)theta_i)). Queries carry zeta^(+n/B), keys zeta^(-n/B).
 *
 * Only the difference of the exponents counts, so they are taken from an origin: the middle of the context when one turn
 * does for all, the start of each piece of queries when it does not. A key before the origin has a factor below 1 and
 * one inside the piece a factor that the piece's length bounds; underflow to 0 is the limit that is wanted.
 */
import type { Device } from '../../backend/device.ts';
import { AnsatzError } from '../../backend/errors.ts';
import type { Positions, TurnPiece } from '../../nn/index.ts';
import { perDevice, rotaryPeriods, rotaryTables, rotatedWidth, tableOn } from '../../nn/positions.ts';
import { type RotaryTable, rope, ropePair, Tensor } from '../../tensor/index.ts';

export interface XposOptions {
  readonly theta: number;
  readonly gamma: number;
  readonly scaleBase: number;
  readonly interleaved: boolean;
}

/** ln zeta of each pair of a head of width R: zeta_i = (2i/R + gamma) / (1 + gamma). */
export const logZeta = (width: number, gamma: number): Float64Array =>
  Float64Array.from({ length: width / 2 }, (_, i) => Math.log(((2 * i) / width + gamma) / (1 + gamma)));

/** Largest exponent (nats) of a factor in tables: products and their gradients stay far inside f32 and bf16. */
const SAFE = 40;

type Part = 'query' | 'key';
type Tables = Readonly<Record<Part, RotaryTable>>;

const repeated = (x: Float32Array, times: number): Float32Array => {
  const all = new Float32Array(x.length * times);
  for (let k = 0; k < times; k++) all.set(x, k * x.length);
  return all;
};

/** Rows `first`, `first` + 1, ... of a table, without copying. */
function rowsFrom({ cos, sin }: RotaryTable, first: number, n: number): RotaryTable {
  const [rows, half] = cos.shape;
  if (first < 0 || first + n > rows)
    throw new AnsatzError(`positions xpos: rows ${first} to ${first + n} of tables that hold ${rows}`);
  const view = (t: Tensor): Tensor => new Tensor(t.storage, t.dtype, [n, half], t.offset + first * half);
  return { cos: view(cos), sin: view(sin) };
}

export function xposPositions(o: XposOptions, context: number, headWidth: number): Positions {
  const width = rotatedWidth('xpos', headWidth, 1);
  const periods = rotaryPeriods(width, o.theta);
  const zeta = logZeta(width, o.gamma);
  /** Tables of positions first, first + 1, ... (again and again): angles from 0, exponents from `origin`. */
  const tables = (device: Device, first: number, n: number, origin: number, times = 1): Tables => {
    const part = (sign: number): RotaryTable => {
      const factor = (t: number, k: number): number => Math.exp((sign * (t - origin) * zeta[k]) / o.scaleBase);
      const { cos, sin } = rotaryTables(n, periods, factor, first);
      return tableOn(device, { cos: repeated(cos, times), sin: repeated(sin, times) }, periods.length);
    };
    return { query: part(1), key: part(-1) };
  };
  const reach = zeta[0] === 0 ? undefined : Math.floor((2 * SAFE * o.scaleBase) / -zeta[0]);
  const whole = reach === undefined || context <= reach;
  const full = perDevice((device) => tables(device, 0, context, Math.floor(context / 2)));
  const prepared: ((device: Device) => Tables)[] = whole ? [full] : [];

  return {
    reach,
    prepare: (device) => {
      for (const make of prepared) make(device);
    },
    rotate: (qkv, heads, kvHeads, c) => {
      if (!whole)
        throw new AnsatzError(`positions xpos: a context of ${context} is turned in pieces of at most ${reach}`, {
          hint: 'attention kind full does so; lower model.context for this one, or raise positions.scaleBase',
        });
      const { query, key } = full(c.device);
      return ropePair(qkv, query, key, { heads, kvHeads, interleaved: o.interleaved, positions: c.positions });
    },
    wrapped: (block, shifts) => {
      const made = new Map(
        shifts.map((shift) => [
          shift,
          perDevice((device) => tables(device, shift, block, 0, Math.ceil(context / block))),
        ]),
      );
      prepared.push(...made.values());
      return (x, part, shift, c) => {
        const { cos, sin } = made.get(shift)!(c.device)[part];
        return rope(x, cos, sin, { interleaved: o.interleaved, positions: c.positions });
      };
    },
    pieces: (before, after): TurnPiece => {
      if (reach !== undefined && 2 * after > reach)
        throw new AnsatzError(`positions xpos: pieces of ${after} tokens, at most ${Math.floor(reach / 2)} are safe`);
      const on = perDevice((device) => tables(device, -before, before + after, 0));
      prepared.push(on);
      return (x, part, start, c) => {
        const { cos, sin } = rowsFrom(on(c.device)[part], start + before, x.shape[1]);
        return rope(x, cos, sin, { interleaved: o.interleaved });
      };
    },
  };
}
