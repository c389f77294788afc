// A block of lines at the bottom of the terminal that is redrawn in place, with ordinary lines scrolling away above
// it. It stays in the scrollback when it is closed, and the cursor comes back however the process ends.
import { displayWidth, truncate } from './format.ts';
import type { TextStream } from './output.ts';

const HIDE_CURSOR = '\x1b[?25l';
const SHOW_CURSOR = '\x1b[?25h';
const ERASE_BELOW = '\x1b[J';
const ERASE_TO_END = '\x1b[K';
// Synchronised output: terminals that know it (mode 2026) show a redraw as a whole, others ignore it.
const BEGIN = '\x1b[?2026h';
const END = '\x1b[?2026l';
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

export class Screen {
  readonly #stream: TextStream;
  readonly #onClose: () => void;
  /** What is on the terminal now, line by line. */
  #shown: string[] = [];
  #open = true;

  constructor(stream: TextStream, onClose: () => void) {
    this.#stream = stream;
    this.#onClose = onClose;
    stream.write(HIDE_CURSOR);
    process.on('exit', this.#restore);
    for (const signal of SIGNALS) process.on(signal, this.#onSignal);
  }

  /** Redraws the block. Lines that do not fit are cut; those beyond the height are left out from the bottom. */
  draw(lines: readonly string[]): void {
    if (!this.#open) return;
    const columns = this.#stream.columns ?? 80;
    // The last row stays free for the cursor, so that drawing never scrolls.
    const fitting = lines.slice(0, Math.max(1, (this.#stream.rows ?? 24) - 1)).map((line) => truncate(line, columns));
    const body = fitting.map((line) => `${line}${ERASE_TO_END}\n`).join('');
    this.#stream.write(`${BEGIN}${this.#toTop(columns)}${body}${ERASE_BELOW}${END}`);
    this.#shown = fitting;
  }

  /** Prints lines that stay, above the block. */
  above(lines: readonly string[]): void {
    const columns = this.#stream.columns ?? 80;
    const block = this.#shown.map((line) => `${truncate(line, columns)}${ERASE_TO_END}\n`).join('');
    const text = lines.map((line) => `${line}${ERASE_TO_END}\n`).join('');
    this.#stream.write(`${BEGIN}${this.#toTop(columns)}${ERASE_BELOW}${text}${block}${END}`);
  }

  /** Takes the block off the terminal. */
  clear(): void {
    this.#stream.write(`${this.#toTop(this.#stream.columns ?? 80)}${ERASE_BELOW}`);
    this.#shown = [];
  }

  /** Leaves what is shown where it is and gives the terminal back. */
  close(): void {
    if (!this.#open) return;
    this.#restore();
    process.removeListener('exit', this.#restore);
    for (const signal of SIGNALS) process.removeListener(signal, this.#onSignal);
    this.#onClose();
  }

  // Since the last drawing the terminal may have become narrower and wrapped our lines: count rows, not lines.
  #toTop(columns: number): string {
    const rows = this.#shown.reduce((sum, line) => sum + Math.max(1, Math.ceil(displayWidth(line) / columns)), 0);
    return rows === 0 ? '\r' : `\r\x1b[${rows}A`;
  }

  readonly #restore = (): void => {
    if (!this.#open) return;
    this.#open = false;
    this.#stream.write(SHOW_CURSOR);
  };

  // Listening takes the default action away. Where nobody else listens, it is put back: restore, then die of it.
  readonly #onSignal = (signal: NodeJS.Signals): void => {
    if (process.listenerCount(signal) > 1) return;
    this.close();
    process.kill(process.pid, signal);
  };
}
