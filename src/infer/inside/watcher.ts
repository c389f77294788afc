/**
 * What fires while a model computes, seen from its ops: no layer has to tell. Inside a captured pass, what is noted here
 * is part of the program, and every replay refreshes it.
 *
 * Experts: `route` and `route_choice` say who goes where, `combine_rows` with what weight. Units: the input of the
 * product that ends a feed-forward layer (`down`). A unit that is exactly 0 for a token has not fired. Of units that are
 * kept as records, those that were chosen count: what they came to nobody sees.
 *
 * Shapes: T tokens, E experts, k choices of a token, F units, b blocks of units.
 */
import { flatten, type ParamTree } from '../../nn/index.ts';
import {
  abs,
  affine,
  cast,
  concat,
  fill,
  mean,
  ne,
  noGrad,
  pad,
  reshape,
  type Tensor,
  type Watcher as Watching,
} from '../../tensor/index.ts';

/** Blocks of units that a layer is summed up in at most. */
const BLOCKS = 64;

/** Who went where in one layer. */
export interface RoutedTensors {
  readonly experts: number;
  /** i32 [T, k]: expert of each choice; null: choice j is expert j. */
  readonly index: Tensor | null;
  /** i32 [T, k]: -1 where a choice was dropped. */
  readonly slot: Tensor;
  /** f32 [T, k]; null: all 1. */
  gates: Tensor | null;
}

/** Units of one layer, summed up in blocks. */
export interface UnitTensors {
  readonly units: number;
  /** Units of a block; the last may have fewer. */
  readonly block: number;
  /** f32 [rows, b]: share of each block's units that are not 0, and their mean magnitude. */
  readonly fired: Tensor;
  readonly strength: Tensor;
  /** i32: which choice (token * k + j) each row is; null: row t is token t. */
  readonly pick: Tensor | null;
  /** Whether units are chosen before they are computed. */
  readonly chosenFirst: boolean;
}

const products = new Set(['matmul', 'quant_matmul', 'grouped_matmul', 'quant_grouped_matmul']);
const grouped = new Set(['grouped_matmul', 'quant_grouped_matmul']);
const tables = new Set(['embedding', 'quant_embedding']);

export class Watcher {
  /** By the layer's path ("blocks.3.ffn"). */
  readonly routed = new Map<string, RoutedTensors>();
  readonly units = new Map<string, UnitTensors>();
  /** Parameters that were read, by path; of tables that only few rows are read, and nothing else. */
  readonly read = new Map<string, { readonly tensor: Tensor; row: boolean }>();
  /** Paths of parts that have one set of parameters an expert. */
  readonly expertParts = new Set<string>();
  private readonly paths: ReadonlyMap<number, string>;
  private readonly width: number;
  private layer = '';
  private pick: Tensor | null = null;
  private chosenFirst = false;

  constructor(params: ParamTree, width: number) {
    this.paths = new Map(flatten(params).map(({ path, tensor }) => [tensor.storage.memory.id, path]));
    this.width = width;
  }

  /** To be given to watch(). */
  readonly see: Watching = (op, inputs, outputs, p) => {
    inputs.forEach((t, k) => {
      const path = t && this.paths.get(t.storage.memory.id);
      if (path) this.note(op, k, t, path);
    });
    if (op === 'route') {
      const [index, slot, pick] = outputs;
      this.routed.set(this.layer, { experts: inputs[0]!.shape[1], index, slot, gates: null });
      this.pick = pick;
    } else if (op === 'route_choice') {
      const [slot, pick] = outputs;
      this.routed.set(this.layer, { experts: slot.shape[1], index: null, slot, gates: null });
      this.pick = pick;
    } else if (op === 'combine_rows') {
      const found = this.routed.get(this.layer);
      if (found && inputs[1]) found.gates = inputs[1];
    } else if (op === 'block_gate' || op === 'unit_choice') this.chosenFirst = true;
    else if (op === 'sparse_units') this.sumChosen(inputs[1]!, inputs[2]!, (p as { block: number }).block);
    else if (products.has(op)) this.sumUnits(op, inputs[0]!, inputs[1]!);
  };

  private note(op: string, place: number, t: Tensor, path: string): void {
    const row = tables.has(op) && place === 0;
    const known = this.read.get(path);
    if (known) known.row &&= row;
    else this.read.set(path, { tensor: t, row });
    const layer = /^(.*\bffn)\./.exec(path)?.[1];
    if (layer && layer !== this.layer) [this.layer, this.chosenFirst] = [layer, false];
    if (grouped.has(op) && place === 1) this.expertParts.add(parent(path));
  }

  /** Sums up what a layer's last product takes in: its units. */
  private sumUnits(op: string, x: Tensor, w: Tensor): void {
    const path = this.paths.get(w.storage.memory.id);
    if (!path || !/\bffn\b.*\.down$/.test(path)) return;
    const F = x.shape[x.rank - 1];
    // From units to the width of the residual stream, one matrix or one an expert.
    if (!w.shape.includes(this.width) || w.size % (F * this.width)) return;
    const pick = grouped.has(op) ? this.pick : null;
    this.units.set(parent(path), { ...summedUp(x), pick, chosenFirst: this.chosenFirst });
  }

  /** The same for units as records: choice i32 [rows, blocks] is the unit of each block. */
  private sumChosen(choice: Tensor, records: Tensor, block: number): void {
    const path = this.paths.get(records.storage.memory.id);
    if (!path) return;
    const [blocks, { device }] = [choice.shape[1], choice];
    const chosen = noGrad(() => {
      // Made by ops: nothing can be written from the host while a pass is captured.
      const each = concat(
        Array.from({ length: block }, (_, k) => fill(device, [1, 1, 1], k, 'i32')),
        2,
      );
      const other = cast(ne(reshape(choice, [-1, blocks, 1]), each), 'f32');
      return reshape(affine(other, -1, 1), [-1, blocks * block]);
    });
    this.units.set(parent(path), { ...summedUp(chosen), pick: null, chosenFirst: true });
  }
}

const parent = (path: string): string => path.slice(0, path.lastIndexOf('.'));

/** Shares and magnitudes of units [..., F] by blocks. */
function summedUp(x: Tensor): Pick<UnitTensors, 'units' | 'block' | 'fired' | 'strength'> {
  return noGrad(() => {
    const F = x.shape[x.rank - 1];
    const block = Math.ceil(F / BLOCKS);
    const blocks = Math.ceil(F / block);
    const rows = cast(reshape(x, [-1, F]), 'f32');
    const byBlock = (t: Tensor): Tensor =>
      mean(reshape(F === block * blocks ? t : pad(t, 1, 0, block * blocks - F), [-1, blocks, block]), [2]);
    const zero = fill(x.device, [1], 0);
    return { units: F, block, fired: byBlock(cast(ne(rows, zero), 'f32')), strength: byBlock(abs(rows)) };
  });
}
