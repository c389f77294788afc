// The contract between every command and whoever started it:
//
//   tty     a person at a terminal: colours, things redrawn in place
//   plain   a pipe, a file, a dumb terminal: lines, no escape sequences
//   json    a program: one JSON object a line on stdout and nothing else
//
// stderr stays empty on success. A failure is one line `error: what: why` and, when there is one, a line
// `  next: what to do` on stderr, in every mode; in json mode also an {"event":"error"} line on stdout. The exit code is
// 0, 1 for a failure, 2 for a command line that was not understood.
import { AnsatzError } from '../../backend/errors.ts';
import type { RunEvent } from '../../train/run/events.ts';
import { printable } from './format.ts';
import { Progress, type ProgressOptions } from './progress.ts';
import { Screen } from './screen.ts';
import { Style } from './style.ts';

export type OutputMode = 'tty' | 'plain' | 'json';

/** What is needed of process.stdout; tests pass their own. */
export interface TextStream {
  write(text: string): unknown;
  isTTY?: boolean;
  columns?: number;
  rows?: number;
  on?(event: 'resize' | 'error', listener: (error?: NodeJS.ErrnoException) => void): unknown;
  removeListener?(event: 'resize' | 'error', listener: (error?: NodeJS.ErrnoException) => void): unknown;
}

export interface OutputOptions {
  json?: boolean;
  /** No redrawing and no colours even on a terminal. */
  plain?: boolean;
  stdout?: TextStream;
  stderr?: TextStream;
  env?: Readonly<Record<string, string | undefined>>;
}

/** How far a long operation has come (json mode's twin of the progress bar). */
export interface ProgressEvent {
  event: 'progress';
  time: string;
  label: string;
  done: number;
  total: number | null;
  unit: string;
  perSecond: number;
  elapsed: number;
  /** Seconds; null when unknown. */
  eta: number | null;
}

export interface ErrorEvent {
  event: 'error';
  time: string;
  message: string;
  hint?: string;
  exitCode: number;
}

/** What a command found out: the object that --json is for. */
export interface ResultEvent {
  event: 'result';
  time: string;
  command: string;
  [field: string]: unknown;
}

/** A part of a comparison of many runs: a speed, the plan, the result of one run. */
export interface LabEvent {
  event: 'lab';
  time: string;
  what: 'speed' | 'plan' | 'run';
  [field: string]: unknown;
}

/** A request that a server has answered. */
export interface RequestEvent {
  event: 'request';
  time: string;
  id: string;
  method: string;
  path: string;
  status: number;
  ms: number;
  [field: string]: unknown;
}

export type OutputEvent = RunEvent | ProgressEvent | ErrorEvent | ResultEvent | LabEvent | RequestEvent;

/** A command line that was not understood: exit code 2. */
export class UsageError extends AnsatzError {
  constructor(message: string, options: { hint?: string } = {}) {
    super(message, options);
    this.name = 'UsageError';
  }
}

export class Output {
  readonly mode: OutputMode;
  readonly style: Style;
  /** Whether characters beyond ASCII (Braille, lines, ellipsis) can be shown. */
  readonly unicode: boolean;
  readonly #stdout: TextStream;
  readonly #stderr: TextStream;
  #screen: Screen | undefined;

  constructor(options: OutputOptions = {}) {
    const { json = false, plain = false, env = process.env } = options;
    this.#stdout = options.stdout ?? process.stdout;
    this.#stderr = options.stderr ?? process.stderr;
    const terminal = this.#stdout.isTTY === true && env.TERM !== 'dumb';
    this.mode = json ? 'json' : terminal && !plain ? 'tty' : 'plain';
    // https://no-color.org: any non-empty value turns colours off.
    this.style = new Style(this.mode === 'tty' && !env.NO_COLOR);
    this.unicode = this.mode !== 'json' && speaksUnicode(env);
    // The reader went away (`| head`): stop like any Unix tool, with the status a shell gives for SIGPIPE.
    this.#stdout.on?.('error', (error) => {
      if (error?.code === 'EPIPE') process.exit(141);
      throw error;
    });
  }

  get columns(): number {
    return Math.max(1, this.#stdout.columns ?? (this.mode === 'tty' ? 80 : 120));
  }

  get rows(): number {
    return Math.max(1, this.#stdout.rows ?? 24);
  }

  /** Lines for people; nothing in json mode. */
  say(text: string | readonly string[] = ''): void {
    if (this.mode === 'json') return;
    const lines = typeof text === 'string' ? text.split('\n') : text;
    if (this.#screen) this.#screen.above(lines);
    else this.#stdout.write(`${lines.join('\n')}\n`);
  }

  /** A line for programs; nothing in the other modes. */
  emit(event: OutputEvent): void {
    if (this.mode === 'json') this.#stdout.write(`${JSON.stringify(event)}\n`);
  }

  /** The outcome of a command: lines for people, one object for programs. */
  result(command: string, fields: Readonly<Record<string, unknown>>, text: string | readonly string[]): void {
    this.say(text);
    this.emit({ event: 'result', time: new Date().toISOString(), command, ...fields });
  }

  heading(text: string): void {
    this.say(['', this.style.bold(text)]);
  }

  /** Something the user should know that stops nothing. It goes to stdout: stderr is for failures. */
  warn(message: string, hint?: string): void {
    const line = printable(message, { oneLine: true, unicode: this.unicode });
    this.say([`${this.style.yellow('warning:')} ${line}`, ...(hint ? [`  ${this.style.dim('next:')} ${hint}`] : [])]);
    this.emit({ event: 'warning', time: new Date().toISOString(), message, ...(hint ? { hint } : {}) });
  }

  /** Reports a failure and returns the exit code for it. */
  fail(error: unknown): number {
    this.#screen?.close();
    const { message, hint, exitCode } = describe(error);
    const red = new Style(this.style.enabled && this.#stderr.isTTY === true);
    this.#stderr.write(`${red.red('error:')} ${message}\n`);
    if (hint) this.#stderr.write(`  ${red.dim('next:')} ${hint}\n`);
    const time = new Date().toISOString();
    this.emit({ event: 'error', time, message, ...(hint ? { hint } : {}), exitCode });
    return exitCode;
  }

  /** For anything that may take more than two seconds. */
  progress(options: ProgressOptions): Progress {
    return new Progress(this, options);
  }

  /** The part of the terminal that is redrawn in place (tty mode); one at a time, until it is closed. */
  screen(): Screen {
    if (this.#screen) throw new Error('the screen is in use');
    const screen = new Screen(this.#stdout, () => {
      this.#screen = undefined;
    });
    this.#screen = screen;
    return screen;
  }

  get screenInUse(): boolean {
    return this.#screen !== undefined;
  }
}

/** Runs a command: reports what it throws, sets the exit code, and lets the process end by itself. */
export async function runCommand(output: Output, command: () => Promise<void> | void): Promise<void> {
  try {
    await command();
  } catch (error) {
    process.exitCode = output.fail(error);
  }
}

function describe(error: unknown): { message: string; hint?: string; exitCode: number } {
  const oneLine = (text: string) => printable(text.trim(), { oneLine: true, unicode: false }).replaceAll('\\n', ' ');
  if (error instanceof AnsatzError) {
    const hint = error.hint === undefined ? undefined : oneLine(error.hint);
    return { message: oneLine(error.message), hint, exitCode: error instanceof UsageError ? 2 : 1 };
  }
  // A defect of this program or something nobody thought of: still one line, the stack on request.
  const known = error instanceof Error;
  if (known && process.env.ANSATZ_DEBUG) console.error(error.stack);
  const message = `unexpected: ${oneLine(known ? `${error.name}: ${error.message}` : String(error))}`;
  return { message, hint: 'set ANSATZ_DEBUG=1 and run it again for the stack', exitCode: 1 };
}

function speaksUnicode(env: Readonly<Record<string, string | undefined>>): boolean {
  // The Linux console's font has no Braille. No locale at all (containers) says nothing about the terminal: most can.
  if (env.TERM === 'linux') return false;
  const locale = env.LC_ALL || env.LC_CTYPE || env.LANG;
  return !locale || /utf-?8/i.test(locale);
}
