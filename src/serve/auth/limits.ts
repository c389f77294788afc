/** Rates: a bucket holds a minute's worth and fills up evenly; what a request may cost is taken out before it begins. */
import { ApiError } from '../http/errors.ts';
import type { KeyRecord } from './keys.ts';

export class Bucket {
  readonly limit: number;
  private level: number;
  private at: number;
  private readonly now: () => number;

  /** `limit` a minute. */
  constructor(limit: number, now: () => number = () => performance.now()) {
    [this.limit, this.level, this.now] = [limit, limit, now];
    this.at = now();
  }

  /** What is left now. */
  get remaining(): number {
    const now = this.now();
    this.level = Math.min(this.limit, this.level + ((now - this.at) / 60_000) * this.limit);
    this.at = now;
    return this.level;
  }

  /** Milliseconds until `amount` is there; 0 when it is. */
  wait(amount: number): number {
    const missing = amount - this.remaining;
    return missing <= 0 ? 0 : (missing / this.limit) * 60_000;
  }

  take(amount: number): void {
    this.level = this.remaining - amount;
  }

  give(amount: number): void {
    this.level = Math.min(this.limit, this.remaining + amount);
  }
}

/** A duration as OpenAI's headers have it: 12ms, 1s, 6m0s. */
export function duration(ms: number): string {
  if (ms <= 999) return `${Math.ceil(ms)}ms`;
  const s = Math.ceil(ms / 1000);
  return s < 60 ? `${s}s` : `${Math.floor(s / 60)}m${s % 60}s`;
}

export interface Rates {
  readonly requests: Bucket | null;
  readonly tokens: Bucket | null;
}

export class Limits {
  private readonly rates = new Map<string, Rates>();
  private readonly usual: Pick<KeyRecord, 'requestsPerMinute' | 'tokensPerMinute'>;

  /** `usual`: for keys without rates of their own. */
  constructor(usual: Limits['usual'] = {}) {
    this.usual = usual;
  }

  of(key: KeyRecord | null): Rates {
    const name = key?.name ?? '';
    const known = this.rates.get(name);
    if (known) return known;
    const { requestsPerMinute = this.usual.requestsPerMinute, tokensPerMinute = this.usual.tokensPerMinute } =
      key ?? {};
    const made = {
      requests: requestsPerMinute ? new Bucket(requestsPerMinute) : null,
      tokens: tokensPerMinute ? new Bucket(tokensPerMinute) : null,
    };
    this.rates.set(name, made);
    return made;
  }
}

/** Takes one request out of its bucket. */
export function admitRequest({ requests }: Rates): void {
  if (!requests) return;
  const wait = requests.wait(1);
  if (wait > 0) throw limited('requests', requests, 1, wait);
  requests.take(1);
}

/** Takes the most tokens that a request may cost; returns how to give back what it did not. */
export function admitTokens({ tokens }: Rates, amount: number): (used: number) => void {
  if (!tokens) return () => {};
  const wait = tokens.wait(amount);
  if (wait > 0) throw limited('tokens', tokens, amount, wait);
  tokens.take(amount);
  let open = true;
  return (used) => {
    if (open) tokens.give(amount - used);
    open = false;
  };
}

function limited(what: string, { limit }: Bucket, amount: number, wait: number): ApiError {
  const never = amount > limit;
  const ms = Math.max(1, Math.ceil(wait));
  return new ApiError(
    429,
    never
      ? `Request too large: it may take ${amount} ${what}, the limit is ${limit} a minute.${what === 'tokens' ? ' Ask for fewer (max_tokens).' : ''}`
      : `Rate limit reached: ${limit} ${what} a minute. Try again in ${duration(ms)}.`,
    {
      code: 'rate_limit_exceeded',
      headers: never
        ? { 'x-should-retry': 'false' }
        : { 'retry-after-ms': String(ms), 'retry-after': String(Math.ceil(ms / 1000)) },
    },
  );
}

/** The state of a key's rates, as clients read it. */
export function rateHeaders({ requests, tokens }: Rates): Record<string, string> {
  const headers: Record<string, string> = {};
  for (const [name, bucket] of [
    ['requests', requests],
    ['tokens', tokens],
  ] as const) {
    if (!bucket) continue;
    const left = bucket.remaining;
    headers[`x-ratelimit-limit-${name}`] = String(bucket.limit);
    headers[`x-ratelimit-remaining-${name}`] = String(Math.max(0, Math.floor(left)));
    headers[`x-ratelimit-reset-${name}`] = duration(((bucket.limit - left) / bucket.limit) * 60_000);
  }
  return headers;
}
