// The events of a run folded into what is true now: a resumed run's superseded steps are gone, each kind has its list.
import { loadEvents } from './event-log.ts';
import type { EventOf, RunEvent } from './events.ts';

export class RunHistory {
  start: EventOf<'run-start'> | undefined;
  plan: EventOf<'plan'> | undefined;
  startedFrom: EventOf<'started-from'> | undefined;
  end: EventOf<'run-end'> | undefined;
  steps: EventOf<'step'>[] = [];
  evals: EventOf<'eval'>[] = [];
  layers: EventOf<'layers'>[] = [];
  samples: EventOf<'sample'>[] = [];
  checkpoints: EventOf<'checkpoint'>[] = [];
  skips: EventOf<'skip'>[] = [];
  resumes: EventOf<'resumed'>[] = [];
  warnings: EventOf<'warning'>[] = [];
  fallbacks: EventOf<'fallback'>[] = [];

  static of(events: Iterable<RunEvent>): RunHistory {
    const history = new RunHistory();
    for (const event of events) history.add(event);
    return history;
  }

  static async load(path: string): Promise<RunHistory> {
    return RunHistory.of(await loadEvents(path));
  }

  add(event: RunEvent): void {
    switch (event.event) {
      case 'run-start':
        // A run that was killed before its first checkpoint starts again from nothing.
        this.start = event;
        this.#rewind(0);
        break;
      case 'plan':
        this.plan = event;
        break;
      case 'step':
        this.steps.push(event);
        break;
      case 'eval':
        this.evals.push(event);
        break;
      case 'layers':
        this.layers.push(event);
        break;
      case 'sample':
        this.samples.push(event);
        break;
      case 'checkpoint':
        this.checkpoints.push(event);
        break;
      case 'skip':
        this.skips.push(event);
        break;
      case 'resumed':
        this.#rewind(event.step);
        this.resumes.push(event);
        break;
      case 'started-from':
        this.startedFrom = event;
        break;
      case 'warning':
        this.warnings.push(event);
        break;
      case 'fallback':
        this.fallbacks.push(event);
        break;
      case 'run-end':
        this.end = event;
        break;
      default:
        // An event kind of a later version: a reader of this version has no use for it. The assignment makes a kind
        // that was added to the union but forgotten here a compile error.
        event satisfies never;
    }
  }

  #rewind(step: number): void {
    const upTo = <E extends { step: number }>(events: E[]) => events.filter((event) => event.step <= step);
    this.end = undefined;
    this.steps = upTo(this.steps);
    this.evals = upTo(this.evals);
    this.layers = upTo(this.layers);
    this.samples = upTo(this.samples);
    this.checkpoints = upTo(this.checkpoints);
    this.skips = upTo(this.skips);
  }
}
