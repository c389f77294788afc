/** From the tensors of a pass to numbers: small ones, since a server sends them. */
import type { Tensor } from '../../tensor/index.ts';
import type { Seen } from './pass.ts';
import type { LayerSeen } from './seen.ts';
import type { RoutedTensors, UnitTensors } from './watcher.ts';

export type { LayerSeen };

const values = async (t: Tensor): Promise<ArrayLike<number>> => await t.data();

/** What was expected after each token. */
export async function readExpected(
  chunks: { lse: Tensor; next: Tensor; values: Tensor; indices: Tensor }[],
  k: number,
): Promise<{ next: number[]; top: { token: number; logprob: number }[][] }> {
  const next: number[] = [];
  const top: { token: number; logprob: number }[][] = [];
  for (const chunk of chunks) {
    const [lse, own, best, ids] = await Promise.all([chunk.lse, chunk.next, chunk.values, chunk.indices].map(values));
    for (let r = 0; r < lse.length; r++) {
      next.push(own[r] - lse[r]);
      top.push(Array.from({ length: k }, (_, j) => ({ token: ids[r * k + j], logprob: best[r * k + j] - lse[r] })));
    }
  }
  return { next, top };
}

const byte = (share: number): number => Math.max(0, Math.min(255, Math.round(255 * share)));

/** The layers of a pass for the first T tokens. */
export async function readLayers(seen: Seen, T: number): Promise<LayerSeen[]> {
  const layers: LayerSeen[] = [];
  for (const [layer, r] of seen.routed) layers.push(await readRouted(layer, r, T));
  for (const [layer, u] of seen.units) {
    const mixture = u.pick && [...seen.routed].find(([path]) => layer.startsWith(`${path}.`))?.[1];
    layers.push(await readUnits(layer, u, mixture ? mixture.slot.shape[1] : 1, T));
  }
  return layers;
}

async function readRouted(layer: string, r: RoutedTensors, T: number): Promise<LayerSeen> {
  const [slot, index, gates] = await Promise.all([r.slot, r.index, r.gates].map((t) => (t ? values(t) : null)));
  const k = r.slot.shape[1];
  const cells = new Uint8Array(T * r.experts);
  const active = new Float32Array(T);
  for (let t = 0; t < T; t++) {
    const went = Array.from({ length: k }, (_, j) => t * k + j).filter((c) => slot![c] >= 0);
    const weight = (c: number): number => Math.abs(gates?.[c] ?? 1);
    const largest = Math.max(1e-9, ...went.map(weight));
    for (const c of went) cells[t * r.experts + (index ? index[c] : c % k)] = Math.max(1, byte(weight(c) / largest));
    active[t] = went.length;
  }
  return { layer, kind: 'experts', count: r.experts, columns: r.experts, block: 1, cells, active };
}

/** @param k choices of a token, where rows are choices */
async function readUnits(layer: string, u: UnitTensors, k: number, T: number): Promise<LayerSeen> {
  const [fired, strength, pick] = await Promise.all([u.fired, u.strength, u.pick].map((t) => (t ? values(t) : null)));
  const columns = u.fired.shape[1];
  const sums = { fired: new Float64Array(T * columns), strength: new Float64Array(T * columns) };
  const rows = new Float64Array(T);
  for (let r = 0; r < u.fired.shape[0]; r++) {
    const t = pick ? (pick[r] < 0 ? -1 : Math.floor(pick[r] / k)) : r;
    if (t < 0 || t >= T) continue;
    rows[t]++;
    for (let b = 0; b < columns; b++) {
      sums.fired[t * columns + b] += fired![r * columns + b];
      sums.strength[t * columns + b] += strength![r * columns + b];
    }
  }
  const mean = (list: Float64Array): Float64Array => list.map((v, c) => v / Math.max(1, rows[Math.floor(c / columns)]));
  const [shares, magnitudes] = [mean(sums.fired), mean(sums.strength)];
  const largest = magnitudes.reduce((a, b) => Math.max(a, b), 1e-9);
  // The last block may hold fewer units: its mean is over a whole block's places.
  const last = u.units - (columns - 1) * u.block;
  const cells = Uint8Array.from(shares, (s, c) => byte(c % columns === columns - 1 ? (s * u.block) / last : s));
  const share = (t: number): number =>
    (shares.subarray(t * columns, (t + 1) * columns).reduce((a, b) => a + b, 0) * u.block) / u.units;
  const active = Float32Array.from({ length: T }, (_, t) => share(t));
  const relative = Uint8Array.from(magnitudes, (m) => byte(m / largest));
  return { layer, kind: 'units', count: u.units, columns, block: u.block, cells, active, strength: relative };
}
