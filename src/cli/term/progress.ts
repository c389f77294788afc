// Progress of anything that may take more than two seconds: a bar redrawn in place on a terminal, a line now and then
// without one, progress events in json mode. What is done quickly says nothing but its closing line.
import { formatBytes, formatCount, formatDuration, pad } from './format.ts';
import type { Output, ProgressEvent } from './output.ts';
import type { Screen } from './screen.ts';

export interface ProgressOptions {
  label: string;
  /** Absent when it cannot be known. */
  total?: number;
  /** 'B' prints sizes; anything else is put after counts ("documents"). */
  unit?: string;
  /** Say nothing at the end. */
  quiet?: boolean;
  /** For tests. */
  now?: () => number;
}

const SHOW_AFTER_MS = { tty: 400, plain: 2000, json: 2000 };
const EVERY_MS = { tty: 120, plain: 5000, json: 1000 };

export class Progress {
  readonly #output: Output;
  readonly #options: ProgressOptions;
  readonly #now: () => number;
  readonly #started: number;
  readonly #timer: NodeJS.Timeout | undefined;
  #lastShown: number;
  #done = 0;
  #screen: Screen | undefined;
  #finished = false;

  constructor(output: Output, options: ProgressOptions) {
    this.#output = output;
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
    this.#started = this.#now();
    this.#lastShown = this.#started + SHOW_AFTER_MS[output.mode] - EVERY_MS[output.mode];
    // Redraws the time while a long native call reports nothing; does not keep the process alive.
    if (!options.now) this.#timer = setInterval(() => this.#show(), EVERY_MS[output.mode]).unref();
  }

  /** Sets how much is done; cheap enough for a call per item. */
  update(done: number): void {
    this.#done = done;
    this.#show();
  }

  add(more: number): void {
    this.update(this.#done + more);
  }

  /** Ends it: the bar goes, one line with the totals stays. `note` is put at its end. */
  finish(note = ''): void {
    if (!this.#stop()) return;
    const seconds = this.#seconds();
    if (!this.#options.quiet) {
      const { label } = this.#options;
      const rate = this.#done > 0 && seconds > 0 ? ` (${this.#amount(this.#done / seconds)}/s)` : '';
      const what =
        this.#done > 0 ? `${this.#amount(this.#done)} in ${formatDuration(seconds)}${rate}` : formatDuration(seconds);
      this.#output.say(`${this.#output.style.bold(label)}  ${what}${note === '' ? '' : `  ${note}`}`);
    }
    this.#output.emit(this.#event());
  }

  /** Takes the bar away without a closing line, e.g. because of an error. */
  cancel(): void {
    this.#stop();
  }

  #stop(): boolean {
    if (this.#finished) return false;
    this.#finished = true;
    clearInterval(this.#timer);
    this.#screen?.clear();
    this.#screen?.close();
    return true;
  }

  #show(): void {
    const now = this.#now();
    if (this.#finished || now - this.#lastShown < EVERY_MS[this.#output.mode]) return;
    this.#lastShown = now;
    if (this.#output.mode === 'json') this.#output.emit(this.#event());
    else if (this.#output.mode === 'plain') this.#output.say(this.#line());
    else {
      if (!this.#screen && this.#output.screenInUse) return;
      this.#screen ??= this.#output.screen();
      this.#screen.draw([this.#bar()]);
    }
  }

  #seconds(): number {
    return (this.#now() - this.#started) / 1000;
  }

  #event(): ProgressEvent {
    const { label, total = null, unit = '' } = this.#options;
    const elapsed = this.#seconds();
    const perSecond = elapsed > 0 ? this.#done / elapsed : 0;
    const eta = total !== null && perSecond > 0 ? Math.max(0, (total - this.#done) / perSecond) : null;
    return {
      event: 'progress',
      time: new Date().toISOString(),
      label,
      done: this.#done,
      total,
      unit,
      perSecond,
      elapsed,
      eta,
    };
  }

  #amount(value: number): string {
    const { unit = '' } = this.#options;
    return unit === 'B' ? formatBytes(value) : `${formatCount(value)}${unit === '' ? '' : ` ${unit}`}`;
  }

  #line(): string {
    const { label, total, eta, perSecond, elapsed } = this.#event();
    const percent = total ? `${pad(String(Math.floor((100 * this.#done) / total)), 3, 'right')}%  ` : '';
    const amount = total === null ? this.#amount(this.#done) : `${this.#amount(this.#done)} of ${this.#amount(total)}`;
    const rate = this.#done > 0 ? `  ${this.#amount(perSecond)}/s` : '';
    return this.#done > 0 || total !== null
      ? `${label}  ${percent}${amount}${rate}  ${eta === null ? formatDuration(elapsed) : `ETA ${formatDuration(eta)}`}`
      : `${label}  ${formatDuration(elapsed)}`;
  }

  #bar(): string {
    const { style, unicode, columns } = this.#output;
    const { label, total, eta, perSecond, elapsed } = this.#event();
    const rate = this.#done > 0 ? `  ${this.#amount(perSecond)}/s` : '';
    if (total === null) {
      const frames = unicode ? '⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏' : '|/-\\';
      const frame = frames[Math.floor(elapsed * 8) % frames.length];
      const amount = this.#done > 0 ? `  ${this.#amount(this.#done)}${rate}` : '';
      return `${style.cyan(frame)} ${style.bold(label)}${amount}  ${formatDuration(elapsed)}`;
    }
    const fraction = total > 0 ? Math.min(1, this.#done / total) : 1;
    const time = eta === null ? formatDuration(elapsed) : `ETA ${formatDuration(eta)}`;
    const right = `${pad(String(Math.floor(fraction * 100)), 3, 'right')}%${rate}  ${time}`;
    const room = columns - label.length - right.length - 4;
    const bar = room >= 8 ? `  ${drawBar(fraction, Math.min(40, room), this.#output)}` : '';
    return `${style.bold(label)}${bar}  ${right}`;
  }
}

/** A bar of `width` cells. */
export function drawBar(
  fraction: number,
  width: number,
  { style, unicode }: Pick<Output, 'style' | 'unicode'>,
): string {
  const cells = unicode ? width : width - 2;
  const full = Math.round(Math.max(0, Math.min(1, fraction)) * cells);
  return unicode
    ? style.cyan('━'.repeat(full)) + style.dim('─'.repeat(cells - full))
    : `[${'#'.repeat(full)}${'.'.repeat(cells - full)}]`;
}
