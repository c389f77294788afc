/**
 * What decoding one token reads beside weights: the pools of its sequence (keys and values, inputs of convolutions,
 * states of recurrences, compressed blocks, buckets), what an encoder has read, and constants of the parameters. Seen from
 * the ops of one pass on a device without values; each op says how much it reads after so many tokens.
 */
import type { Model } from '../../model/model.ts';
import { type CacheFormat, opTable, pageBytes, type Tensor } from '../../tensor/index.ts';
import { sketch } from '../engine/pools.ts';

const PAGE = 32;

/** Bytes that the row of token n (from 1) reads, an encoder having read `memory` tokens. */
export type StateReads = (n: number, memory: number) => number;

/** What an op reads of a pool that holds n tokens. */
type Reads = (n: number) => number;

type Params = Readonly<Record<string, never>> & { readonly format: CacheFormat };

const least = (...values: number[]): number => Math.max(0, Math.min(...values));

/** Tokens that a row of n sees through a window or its block; 0 stands for no limit. */
function within(n: number, window: number, block: number, back: number): number {
  if (block === 0) return window === 0 ? n : least(n, window);
  const before = Math.floor((n - 1) / block) - back;
  return back === 0 ? n - (before + back) * block : before < 0 ? 0 : block;
}

/** Ops that write what later tokens read. */
const writes = /^paged_(append|write|block_write|lsh_write)$/;

export function stateReads(model: Model, format: CacheFormat): StateReads {
  const seen: { op: string; inputs: readonly (Tensor | null)[]; outputs: readonly Tensor[]; params: Params }[] = [];
  const { holds } = sketch(model, PAGE, format, (op, inputs, outputs, params) => {
    seen.push({ op, inputs, outputs, params: params as Params });
  });
  // Blocks that are compressed end at every `stride` tokens.
  const blocks = seen.find((s) => s.op === 'paged_block_rows')?.params as
    | { length: number; stride: number }
    | undefined;
  const parts = seen.flatMap(({ op, inputs, outputs, params }): StateReads[] => {
    const kinds = inputs.map((t) => t && holds.get(t.storage.memory.id));
    if (writes.test(op) || !kinds.some(Boolean)) return [];
    const of = (reads: Reads): StateReads => (kinds.includes('memory') ? (_, memory) => reads(memory) : reads);
    const { shape } = inputs[kinds.findIndex(Boolean)]!;
    const vector = shape[shape.length - 1] * 4;
    const p: Readonly<Record<string, number>> = params;
    switch (op) {
      case 'paged_attention': {
        const each = pageBytes(p.kvHeads, p.width, PAGE, params.format) / PAGE;
        return [of((n) => each * (n === 0 ? 0 : within(n, p.window, p.block, p.back)))];
      }
      case 'paged_read':
        return [of((n) => vector * least(p.count, n - 1 - p.back + p.count))];
      case 'paged_choose':
        return [(n, memory) => (n <= memory ? vector : 0)];
      case 'paged_conv':
        // As many taps of the filter, which is a constant, as there are tokens.
        return [of((n) => 2 * vector * least(n, inputs[1]!.shape[0]))];
      case 'paged_block_gather': {
        const { length, stride } = blocks!;
        return [of((n) => (n >= length && (n - length) % stride === 0 ? outputs[0].size * 4 : 0))];
      }
      case 'paged_block_attention': {
        const each = pageBytes(p.kvHeads, inputs[0]!.shape[2], PAGE, params.format) / PAGE;
        return [of((n) => each * least(n, inputs[2]!.shape[2] * p.size))];
      }
      case 'paged_block_choose':
      case 'paged_lsh_attention':
        return [of((n) => opTable.get(op)!.bytes!(inputs, outputs, { ...params, seen: n }))];
      // Matrices of routers and of experts' controllers, in blocks: counted among the weights.
      case 'quant_matmul':
      case 'quant_grouped_matmul':
        return [];
      default: {
        const constants = inputs.filter((_, k) => kinds[k] === 'constant');
        const bytes = constants.reduce((sum, t) => sum + t!.storage.memory.bytes, 0);
        return [() => bytes];
      }
    }
  });
  return (n, memory) => Math.round(parts.reduce((sum, part) => sum + part(n, memory), 0));
}
