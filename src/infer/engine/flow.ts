/**
 * How far a sequence may run ahead of whoever takes its tokens. One whose reader is slow pauses: it leaves its place to
 * others, keeps what it has computed as long as there is room, and goes on where it was when the reader has caught up.
 */

/** Tokens that may wait for a reader; a step that verifies drafts brings several at once. */
const MOST_WAITING = 64;
const STEP = 8;

export class Flow {
  private waiting = 0;
  private wake: (() => void) | null = null;

  /** Tokens have come for the reader. */
  made(tokens: number): void {
    this.waiting += tokens;
  }

  /** The reader has taken them. */
  taken(tokens: number): void {
    const before = this.paused;
    this.waiting -= tokens;
    if (before && !this.paused) this.wake?.();
  }

  get paused(): boolean {
    return this.waiting > MOST_WAITING - STEP;
  }

  /** Settles when it may go on, or `signal` aborts. */
  async resumed(signal?: AbortSignal): Promise<void> {
    if (!this.paused || signal?.aborted) return;
    await new Promise<void>((resolve) => {
      const go = (): void => {
        this.wake = null;
        signal?.removeEventListener('abort', go);
        resolve();
      };
      this.wake = go;
      signal?.addEventListener('abort', go);
    });
  }
}
