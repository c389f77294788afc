/** Numbers of a load, as clients felt it. */
import type { Load } from './load.ts';

/** The value below which a share of them lies (nearest rank). */
export function percentile(values: readonly number[], share: number): number {
  if (values.length === 0) return 0;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)];
}

export interface Felt {
  readonly tokensPerSecond: number;
  readonly requestsPerSecond: number;
  /** Milliseconds to the first token, and for each that follows. */
  readonly ttft: { readonly p50: number; readonly p99: number };
  readonly tpot: { readonly p50: number; readonly p99: number };
  readonly sent: number;
  readonly finished: number;
  readonly lost: number;
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly tokens: number;
}

/** What is good enough of an answer: the goals of goodput. */
export const GOALS = { ttft: 1000, tpot: 100 };

const times = ({ due, first, last, tokens }: Load['answers'][number]): { ttft: number; tpot: number } => ({
  ttft: first - due,
  tpot: tokens > 1 ? (last - first) / (tokens - 1) : 0,
});

export function feltOf(loads: readonly Load[], sent: number): Felt {
  const answers = loads.flatMap((l) => l.answers);
  const good = answers.filter((a) => a.wrong === null);
  const all = good.map(times);
  const sum = (of: (a: (typeof good)[number]) => number): number => good.reduce((n, a) => n + of(a), 0);
  const spread = (values: number[]): Felt['ttft'] => ({ p50: percentile(values, 0.5), p99: percentile(values, 0.99) });
  const seconds = loads.reduce((n, l) => n + l.seconds, 0);
  const busy = loads.reduce((n, l) => n + l.busySeconds, 0);
  return {
    tokensPerSecond: loads.reduce((n, l) => n + l.busyTokens, 0) / busy,
    requestsPerSecond: good.length / seconds,
    ttft: spread(all.map((t) => t.ttft)),
    tpot: spread(all.flatMap((t) => (t.tpot > 0 ? [t.tpot] : []))),
    ...{ sent, finished: good.length, lost: sent - good.length },
    ...{
      promptTokens: sum((a) => a.promptTokens),
      cachedTokens: sum((a) => a.cachedTokens),
      tokens: sum((a) => a.tokens),
    },
  };
}

/** Share of the requests that met both goals. */
export function goodShare(load: Load): number {
  const met = load.answers.filter((a) => {
    const { ttft, tpot } = times(a);
    return a.wrong === null && ttft <= GOALS.ttft && tpot <= GOALS.tpot;
  });
  return met.length / load.answers.length;
}
