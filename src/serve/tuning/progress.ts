/** How far a job has come: what its events, its checkpoints and its table of results say. */
import type { StepEvent } from '../../train/run/events.ts';
import { seconds } from '../http/ids.ts';
import type { JobEvent } from './job.ts';

/** Metrics events of a job at most, about. */
const MOST_EVENTS = 200;

export class Progress {
  steps = 0;
  /** Tokens of all passes over the examples. */
  tokens = 0;
  private at: { step: number; loss: number } | null = null;
  private held: { step: number; loss: number } | null = null;
  private began: { step: number; ms: number } | null = null;

  begin(steps: number, tokens: number): void {
    [this.steps, this.tokens] = [steps, tokens];
  }

  /** A step is done; when the last one will be, in seconds since 1970. */
  step({ step, loss }: Pick<StepEvent, 'step' | 'loss'>): number | null {
    this.at = { step, loss };
    this.began ??= { step, ms: performance.now() };
    const done = step - this.began.step;
    if (done === 0) return null;
    return seconds(Date.now() + ((performance.now() - this.began.ms) / done) * (this.steps - step));
  }

  evaluated(step: number, loss: number): void {
    if (Number.isFinite(loss)) this.held = { step, loss };
  }

  /** The numbers of the present step; null when it is one of many that are passed over. */
  metrics(): Record<string, number> | null {
    if (!this.at) return null;
    const every = Math.ceil(this.steps / MOST_EVENTS);
    const { step, loss } = this.at;
    if (step % every !== 0 && step !== this.steps) return null;
    return { step, train_loss: loss, ...this.validation(step) };
  }

  /** The numbers of a checkpoint. */
  now(): Record<string, number> {
    return this.at ? { train_loss: this.at.loss, ...this.validation(this.at.step) } : {};
  }

  /** The steps as CSV; a step that was done twice counts as it was done last. */
  table(events: readonly JobEvent[]): string {
    const rows = new Map<number, string>();
    for (const { type, data } of events)
      if (type === 'metrics') rows.set(Number(data.step), `${data.step},${data.train_loss},${data.valid_loss ?? ''}`);
    return ['step,train_loss,valid_loss', ...[...rows].sort((a, b) => a[0] - b[0]).map(([, row]) => row), ''].join(
      '\n',
    );
  }

  private validation(step: number): Record<string, number> {
    return this.held && this.held.step <= step ? { valid_loss: this.held.loss } : {};
  }
}
