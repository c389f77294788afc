// The live view of a training run. Feed it the run's events as they come (from the trainer in this process or from
// another one's events.jsonl); it draws on a terminal, prints lines without one, and passes events on in json mode.
import type { EventOf, RunEvent } from '../../train/run/events.ts';
import {
  flow,
  formatBytes,
  formatCount,
  formatDuration,
  formatInteger,
  formatLoss,
  formatPercent,
  formatRate,
  pad,
  printable,
} from './format.ts';
import { drawFrame, formatMs, formatNorm } from './live-frame.ts';
import { LiveState } from './live-state.ts';
import type { Output } from './output.ts';
import type { Screen } from './screen.ts';

export interface LiveOptions {
  title: string;
  /** Shown under the curve while the run goes on, e.g. 'Ctrl-C stops and saves'. */
  footer?: string;
  redrawsPerSecond?: number;
  /** Seconds between lines without a terminal. */
  lineEvery?: number;
  /** Milliseconds; for tests. */
  now?: () => number;
}

/** Columns of the plain view: title, width, and how soon it is given up where all do not fit (0 never). */
const COLUMNS: [title: string, width: number, spare: number][] = [
  ['step', 8, 0],
  ['tokens', 8, 2],
  ['loss', 8, 0],
  ['smooth', 8, 3],
  ['grad', 8, 4],
  ['lr', 8, 5],
  ['tok/s', 7, 0],
  ['MFU', 6, 0],
  ['ms/step', 7, 1],
  ['elapsed', 7, 6],
  ['ETA', 7, 0],
];
const GAP = '  ';

/** Indices into COLUMNS of what fits. */
function fittingColumns(width: number): number[] {
  let chosen = COLUMNS.map((_, k) => k);
  const total = () => chosen.reduce((sum, k) => sum + COLUMNS[k][1] + GAP.length, -GAP.length);
  for (let spare = 1; total() > width && spare <= 6; spare++) chosen = chosen.filter((k) => COLUMNS[k][2] !== spare);
  return chosen;
}

/** Each measure of the layers that have it: its least and largest value. */
function ranges(layers: EventOf<'layers'>['layers']): string {
  const names = [...new Set(layers.flatMap(({ measures }) => Object.keys(measures)))];
  return names
    .map((name) => {
      const all = layers.flatMap(({ measures }) => measures[name] ?? []);
      const [least, most] = [Math.min(...all), Math.max(...all)].map((x) => String(Number(x.toPrecision(3))));
      return `${name} ${least === most ? least : `${least} to ${most}`}`;
    })
    .join(', ');
}

export class LiveView {
  readonly state = new LiveState();
  readonly #output: Output;
  readonly #options: LiveOptions;
  readonly #now: () => number;
  readonly #screen: Screen | undefined;
  readonly #timer: NodeJS.Timeout | undefined;
  #changed = true;
  #size = '';
  #lastLine = Number.NEGATIVE_INFINITY;
  #lastStepShown = -1;
  #titled = false;

  constructor(output: Output, options: LiveOptions) {
    this.#output = output;
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
    if (output.mode !== 'tty') return;
    this.#screen = output.screen();
    this.#draw();
    this.#timer = setInterval(() => this.#draw(), 1000 / (options.redrawsPerSecond ?? 8)).unref();
  }

  add(event: RunEvent): void {
    this.state.add(event);
    this.#changed = true;
    const { mode } = this.#output;
    if (mode === 'json') this.#output.emit(event);
    else {
      if (mode === 'plain') this.#plain(event);
      this.#remark(event);
    }
  }

  /** Draws the last state and gives the terminal back. Call it however training ended. */
  close(): void {
    clearInterval(this.#timer);
    if (this.#screen) {
      this.#changed = true;
      this.#draw();
      this.#screen.close();
    } else if (this.#output.mode === 'plain' && this.state.step && this.state.step.step !== this.#lastStepShown) {
      this.#stepLine();
    }
  }

  #draw(): void {
    const { style, unicode, columns, rows } = this.#output;
    const size = `${columns}x${rows}`;
    if (!this.#changed && size === this.#size) return;
    this.#changed = false;
    this.#size = size;
    const { title, footer } = this.#options;
    this.#screen?.draw(drawFrame(this.state, { title, footer, style, unicode, columns, rows }));
  }

  /** What must not pass by unseen: printed once, above the frame or between the lines. */
  #remark(event: RunEvent): void {
    const { style, unicode, mode, columns } = this.#output;
    const clean = (text: string) => printable(text, { oneLine: true, unicode });
    const say = (tag: string, text: string) => this.#output.say(`${style.yellow(tag)} ${clean(text)}`);
    switch (event.event) {
      case 'warning':
        say('warning:', event.message);
        if (event.hint) this.#output.say(`  ${style.dim('next:')} ${clean(event.hint)}`);
        break;
      case 'fallback':
        say('fallback:', `${event.op} runs ${event.used} instead of ${event.wanted}: ${event.why}`);
        break;
      case 'skip': {
        const what = event.loss === null ? 'loss' : 'gradient';
        say(
          'skipped:',
          `step ${event.step} had a non-finite ${what}${event.dump ? `; its batch is in ${event.dump}` : ''}`,
        );
        break;
      }
      case 'layers':
        this.#output.say(`${style.dim(`layers at ${formatInteger(event.step)}:`)} ${ranges(event.layers)}`);
        break;
      case 'started-from':
        this.#output.say(
          `${style.bold('started')} from ${clean(event.run)}, step ${formatInteger(event.step)}: ${event.copied} tensors, ${event.fresh.length} fresh`,
        );
        break;
      case 'resumed':
        this.#output.say(
          `${style.bold('resumed')} from step ${formatInteger(event.step)} (${clean(event.checkpoint)})`,
        );
        break;
      case 'sample': {
        const text = `${style.dim(clean(event.prompt))}${clean(event.completion)}`;
        this.#output.say(flow([`${style.dim(`sample at ${formatInteger(event.step)}:`)} ${text}`], columns));
        break;
      }
      case 'run-end':
        if (mode === 'plain') {
          if (this.state.step && this.state.step.step !== this.#lastStepShown) this.#stepLine();
          this.#output.say(`${event.status} in ${formatDuration(event.elapsed)}, ${formatInteger(event.step)} steps`);
        }
        if (event.message) this.#output.say(clean(event.message));
        break;
    }
  }

  #plain(event: RunEvent): void {
    const { plan, evaluation } = this.state;
    switch (event.event) {
      case 'run-start':
        this.#output.say(`${this.#options.title}: ${event.device}, seed ${event.seed}`);
        break;
      case 'plan':
        this.#output.say(
          `${formatCount(event.parameters)} parameters, ${formatInteger(event.steps)} steps of ` +
            `${formatInteger(event.tokensPerStep)} tokens, ${formatBytes(event.memoryBytes)} of memory`,
        );
        break;
      case 'step': {
        const due = this.#now() - this.#lastLine >= (this.#options.lineEvery ?? 5) * 1000;
        if (due || event.step === plan?.steps) this.#stepLine();
        break;
      }
      case 'eval': {
        const baselines = Object.entries(evaluation?.baselines ?? {}).map(
          ([name, value]) => `${name} ${value.toFixed(3)}`,
        );
        const against = baselines.length > 0 ? ` (${baselines.join(', ')})` : '';
        this.#output.say(
          `${pad(formatInteger(event.step), COLUMNS[0][1], 'right')}  held-out loss ${formatLoss(event.loss)}, ` +
            `${formatLoss(event.bitsPerByte)} bits/byte${against}`,
        );
        break;
      }
      case 'checkpoint':
        this.#output.say(
          `${pad(formatInteger(event.step), COLUMNS[0][1], 'right')}  checkpoint ${event.path} ` +
            `(${formatBytes(event.bytes)} in ${formatDuration(event.ms / 1000)})`,
        );
        break;
    }
  }

  #stepLine(): void {
    const { step, smoothedLoss, eta } = this.state;
    if (!step) return;
    const chosen = fittingColumns(this.#output.columns);
    const row = (cells: readonly string[]) => chosen.map((k) => pad(cells[k], COLUMNS[k][1], 'right')).join(GAP);
    if (!this.#titled) this.#output.say(row(COLUMNS.map(([title]) => title)));
    this.#titled = true;
    this.#lastLine = this.#now();
    this.#lastStepShown = step.step;
    this.#output.say(
      row([
        formatInteger(step.step),
        formatCount(step.tokens),
        formatLoss(step.loss),
        formatLoss(smoothedLoss),
        formatNorm(step.gradNorm),
        formatRate(step.lr),
        formatCount(step.tokensPerSecond),
        formatPercent(step.mfu),
        formatMs(step.msPerStep),
        formatDuration(step.elapsed),
        eta === undefined ? '?' : formatDuration(eta),
      ]),
    );
  }
}
