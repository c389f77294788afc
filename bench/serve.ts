/**
 * `ansatz serve` under load: a real server process on loopback, clients in another process, streamed answers. Closed loop
 * (N clients that ask again as soon as they are answered) at 1, 8, 64 and 256, llama.cpp behind the same endpoint taking
 * turns at 1, 8 and 64; prompts with a shared beginning; sampling instead of greedy picks; and an open loop (Poisson
 * arrivals at a share of the measured capacity) with goodput. What is asked is the same in every run (serve/work.ts).
 *
 * ANSATZ_BENCH_ONLY takes shapes (0.1B; 0.5B is measured when it is named), types (q8, bf16), stream counts, the rows
 * shared, sampled and open, and `alone`, which leaves the peer out. ANSATZ_BENCH_SHARE takes a share of the requests (1).
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { randomGguf, type Shape } from './decode-models.ts';
import { median, type Row } from './harness.ts';
import { noLlama } from './llama.ts';
import { Loader, metricsOf, type Served, startOurs, startPeer } from './serve/children.ts';
import type { Job, Load } from './serve/load.ts';
import { idsOf, randomRun, SERVED } from './serve/model.ts';
import { feltOf, GOALS, goodShare } from './serve/stats.ts';
import { described, LONGEST } from './serve/work.ts';

const SEED = 20260;
const OPTIONS = ['--sequences', '256', '--cache-bytes', '2G'];

interface Level {
  readonly name: string;
  readonly streams: number;
  /** Requests of a turn, and turns. */
  readonly requests: number;
  readonly turns: number;
  readonly peer?: boolean;
  readonly temperature?: number;
  /** Tokens of a beginning that all prompts share. */
  readonly shared?: number;
}

const LEVELS: readonly Level[] = [
  { name: '1', streams: 1, requests: 4, turns: 3, peer: true },
  { name: '8', streams: 8, requests: 16, turns: 2, peer: true },
  { name: '64', streams: 64, requests: 80, turns: 1, peer: true },
  { name: '256', streams: 256, requests: 320, turns: 1 },
  { name: 'shared', streams: 8, requests: 32, turns: 1, shared: 256 },
  { name: 'sampled', streams: 8, requests: 24, turns: 1, temperature: 1 },
];
/** Tokens of an answer before anything is measured. */
const WARM = 16;
/** Shares of the capacity, and seconds, of the open loop. */
const OPEN = { loads: [0.5, 0.9], seconds: 20 };
/** With weights in bf16. */
const FEW = ['1', '64'];

const only = process.env.ANSATZ_BENCH_ONLY?.split(',') ?? [];
const share = Number(process.env.ANSATZ_BENCH_SHARE ?? 1);
/** Whether one of a sort is wanted: a sort of which none is named is not narrowed. */
const wants = (sort: readonly string[], name: string): boolean =>
  only.includes(name) || !sort.some((s) => only.includes(s));
const TYPES = ['q8', 'bf16'] as const;
const ROWS = [...LEVELS.map((l) => l.name), 'open'];

/** Our server, and what asks it. */
class Bench {
  private readonly loader = new Loader();
  private readonly ours: Served;
  private readonly name: string;
  private readonly shape: Shape;
  private readonly gguf: string | null;
  /** Requests that have been asked: none is asked twice. */
  private asked = 0;
  /** Requests a second, the most that were answered. */
  private capacity = 0;
  /** The peer's tokens a second for one text at a time. */
  private peerAlone: number | null = null;

  constructor(name: string, shape: Shape, ours: Served, gguf: string | null) {
    [this.name, this.shape, this.ours, this.gguf] = [name, shape, ours, gguf];
  }

  async closed(level: Level): Promise<Row> {
    const { streams, turns, shared = 0, temperature = 0 } = level;
    const count = Math.max(streams, Math.round(level.requests * share));
    const peer = level.peer && this.gguf ? await startPeer(this.gguf, streams, LONGEST + 1) : null;
    const job = { streams, shared, temperature };
    try {
      // Passes of every size occur once before anything is measured.
      await this.turns(Math.max(2, streams), 1, { ...job, most: WARM }, peer);
      const { ours, peers, grown } = await this.turns(count, turns, job, peer);
      const felt = feltOf(ours, count * turns);
      const rate = (l: Load): number => l.busyTokens / l.busySeconds;
      this.capacity = Math.max(this.capacity, felt.requestsPerSecond);
      const speed = median(ours.map(rate));
      if (peer && streams === 1) this.peerAlone = median(peers.map(rate));
      const alone = this.peerAlone;
      return {
        name: `serve/${this.name}/${level.name}`,
        ours: speed,
        peer: peer && median(peers.map(rate)),
        ratio: peer && median(ours.map((l, k) => rate(l) / rate(peers[k]))),
        ...(peer ? { peerName: 'node-llama-cpp q8_0', peerFelt: feltOf(peers, count * turns) } : {}),
        // Its batches gain little on a CPU: what it would do one text after the other.
        ...(peer && alone && streams > 1 ? { peerOneByOne: alone, ratioOneByOne: speed / alone } : {}),
        unit: 'tokens/s',
        streams,
        ...felt,
        preemptions: grown('preemptions_total'),
        rowsPerStep: grown('rows_total') / grown('steps_total'),
        prefixHits: grown('cache_hit_tokens_total') / grown('cache_asked_tokens_total'),
      };
    } finally {
      await peer?.stop();
    }
  }

  /** Requests that come when they come. */
  async open(load: number, seconds: number): Promise<Row> {
    const rate = load * this.capacity;
    const count = Math.max(4, Math.round(rate * seconds * share));
    const { ours, grown } = await this.turns(count, 1, { rate }, null);
    const good = goodShare(ours[0]);
    return {
      name: `serve/${this.name}/open/${load}`,
      ...{ ours: good * rate, peer: null, ratio: null, unit: 'good requests/s', rate, goodShare: good, goals: GOALS },
      ...feltOf(ours, count),
      preemptions: grown('preemptions_total'),
    };
  }

  async close(): Promise<void> {
    await this.loader.stop();
    await this.ours.stop();
  }

  /** The same requests to both, in turns; and how much numbers of our /metrics grew. */
  private async turns(
    count: number,
    turns: number,
    o: Pick<Job, 'streams' | 'rate'> & { shared?: number; most?: number; temperature?: number },
    peer: Served | null,
  ): Promise<{ ours: Load[]; peers: Load[]; grown: (name: string) => number }> {
    const { shared = 0, most, temperature = 0, ...how } = o;
    const work = { seed: SEED, shared, most, ids: idsOf(this.shape) };
    const run = (url: string, first: number): Promise<Load> =>
      this.loader.run({ url, model: 'm', temperature, work, first, count, ...how });
    const [ours, peers]: [Load[], Load[]] = [[], []];
    const before = await metricsOf(this.ours.url);
    for (let k = 0; k < turns; k++) {
      const first = this.asked;
      this.asked += count;
      ours.push(await run(this.ours.url, first));
      if (peer) peers.push(await run(peer.url, first));
    }
    const after = await metricsOf(this.ours.url);
    return { ours, peers, grown: (name) => (after.get(name) ?? 0) - (before.get(name) ?? 0) };
  }
}

async function* measure(shape: Shape, type: (typeof TYPES)[number]): AsyncIterable<Row> {
  const gguf = type === 'q8' && !noLlama && !only.includes('alone') ? await randomGguf(shape, 'q8_0') : null;
  const path = await randomRun(shape, type === 'q8' ? 'q8' : 'bf16x16');
  const data = mkdtempSync(join(tmpdir(), 'ansatz-bench-serve-'));
  let bench: Bench | undefined;
  try {
    bench = new Bench(`${shape.name}/${type}`, shape, await startOurs([`m=${path}`], data, OPTIONS), gguf);
    const levels = LEVELS.filter((l) => wants(ROWS, l.name) && (type === 'q8' || FEW.includes(l.name)));
    for (const level of levels) yield await bench.closed(level);
    if (type !== 'q8' || !wants(ROWS, 'open')) return;
    if (levels.length === 0) await bench.closed(LEVELS.find((l) => l.name === '64')!);
    for (const load of OPEN.loads) yield await bench.open(load, OPEN.seconds);
  } finally {
    await bench?.close();
    rmSync(data, { recursive: true, force: true });
  }
}

export async function* run(): AsyncIterable<Row> {
  if (noLlama) console.error(noLlama);
  const work = `${described}; ours: ${OPTIONS.join(' ')}`;
  for (const shape of SERVED)
    for (const type of TYPES)
      if ((shape.name === '0.1B' && wants(['0.5B'], '0.1B')) || only.includes(shape.name))
        if (wants(TYPES, type)) for await (const row of measure(shape, type)) yield { ...row, work };
}
