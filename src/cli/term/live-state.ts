// What the live view knows: the events so far, folded into the few numbers and two curves that it shows.
import type { EventOf, RunEvent } from '../../train/run/events.ts';
import { type Point, Smoother, ThinnedSeries } from '../../train/run/series.ts';

// Points that bring an average back to where it was before the superseded steps: ten times its longest memory.
const RECALL = 200;

export class LiveState {
  start: EventOf<'run-start'> | undefined;
  plan: EventOf<'plan'> | undefined;
  step: EventOf<'step'> | undefined;
  evaluation: EventOf<'eval'> | undefined;
  checkpoint: EventOf<'checkpoint'> | undefined;
  end: EventOf<'run-end'> | undefined;
  skipped = 0;
  loss = new ThinnedSeries();
  smooth = new ThinnedSeries();
  heldOut: Point[] = [];
  #smoother = new Smoother();
  #speed = new Smoother(0.9);

  add(event: RunEvent): void {
    switch (event.event) {
      case 'run-start':
        this.start = event;
        this.end = undefined;
        break;
      case 'plan':
        this.plan = event;
        break;
      case 'step':
        this.step = event;
        this.loss.add(event.step, event.loss);
        this.smooth.add(event.step, this.#smoother.add(event.loss));
        this.#speed.add(event.tokensPerSecond);
        break;
      case 'eval':
        this.evaluation = event;
        this.heldOut.push({ x: event.step, y: event.loss });
        break;
      case 'checkpoint':
        this.checkpoint = event;
        break;
      case 'skip':
        this.skipped++;
        break;
      case 'resumed':
        this.#rewind(event.step);
        break;
      case 'run-end':
        this.end = event;
        break;
    }
  }

  get smoothedLoss(): number | undefined {
    const { value } = this.#smoother;
    return Number.isNaN(value) ? undefined : value;
  }

  /** 0 to 1, by tokens or by the time budget, whichever is further; undefined before there is a plan. */
  get fraction(): number | undefined {
    if (!this.plan) return undefined;
    const byTokens = this.plan.tokens > 0 ? (this.step?.tokens ?? 0) / this.plan.tokens : 0;
    const byTime = this.plan.seconds ? (this.step?.elapsed ?? 0) / this.plan.seconds : 0;
    return Math.min(1, Math.max(byTokens, byTime));
  }

  /** Seconds left, from recent speed. */
  get eta(): number | undefined {
    const speed = this.#speed.value;
    if (!this.plan || !this.step || !(speed > 0)) return undefined;
    const byTokens = Math.max(0, this.plan.tokens - this.step.tokens) / speed;
    const byTime = this.plan.seconds ? Math.max(0, this.plan.seconds - this.step.elapsed) : Number.POSITIVE_INFINITY;
    return Math.min(byTokens, byTime);
  }

  #rewind(step: number): void {
    this.loss.rewind(step);
    this.smooth.rewind(step);
    this.heldOut = this.heldOut.filter((point) => point.x <= step);
    this.step = undefined;
    this.end = undefined;
    this.#smoother = new Smoother();
    for (const { y } of this.loss.points.slice(-RECALL)) this.#smoother.add(y);
  }
}
