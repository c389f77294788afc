/** What serves requests, and how it is doing. */
import type { PageStats } from './pages.ts';
import type { Finished, Request } from './sequence.ts';

export interface EngineStats {
  readonly steps: number;
  readonly rows: number;
  readonly tokens: number;
  readonly running: number;
  readonly waiting: number;
  /** Sequences whose readers are slow. */
  readonly paused: number;
  readonly preemptions: number;
  readonly drafted: number;
  readonly accepted: number;
  readonly pages: PageStats;
}

/** Something that serves requests. */
export interface Decoding {
  /**
   * Serves a request; settles when it has ended.
   * @throws AnsatzError at once when it can never fit.
   */
  submit(request: Request): Promise<Finished>;
  stats(): EngineStats;
  /** Ends every request and waits for the step in progress. */
  close(): Promise<void>;
}
