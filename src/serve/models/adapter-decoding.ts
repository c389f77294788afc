/** The decoder of a model, for one of its adapters: requests are computed with the adapter's differences, beside all others. */
import { AnsatzError } from '../../backend/errors.ts';
import type { DecodingVariant, OpenDecoding } from '../../infer/decoding.ts';
import type { EngineStats, Finished, Request } from '../../infer/engine/index.ts';

export class AdapterDecoding implements OpenDecoding {
  readonly recomputes = null;
  private readonly base: OpenDecoding;
  private readonly variant: number;
  private readonly open = new Map<AbortController, Promise<unknown>>();
  private closed = false;

  constructor(base: OpenDecoding, { variant }: DecodingVariant) {
    [this.base, this.variant] = [base, variant];
  }

  submit(request: Request): Promise<Finished> {
    if (this.closed) throw new AnsatzError('the engine is closed');
    const { signal } = request;
    const control = new AbortController();
    const forward = (): void => control.abort();
    if (signal?.aborted) control.abort();
    const served = this.base.submit({ ...request, signal: control.signal, variant: this.variant });
    signal?.addEventListener('abort', forward);
    const over = served.then(
      () => {},
      () => {},
    );
    this.open.set(
      control,
      over.then(() => {
        signal?.removeEventListener('abort', forward);
        this.open.delete(control);
      }),
    );
    return served;
  }

  /** Those of the decoder that all share. */
  stats(): EngineStats {
    return this.base.stats();
  }

  /** Ends the adapter's requests; the decoder goes on with those of others. Its differences stay the caller's. */
  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    for (const control of this.open.keys()) control.abort();
    await Promise.all(this.open.values());
  }
}
