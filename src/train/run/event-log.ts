// events.jsonl: the writer appends whole lines and nothing else; the reader takes whole lines and nothing else. A
// process killed in the middle of a write leaves at most one torn last line, which readers ignore and the next writer
// removes.
import { closeSync, fstatSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { AnsatzError } from '../../backend/errors.ts';
import { type NewRunEvent, type RunEvent, stamped } from './events.ts';

const NEWLINE = 0x0a;
const CHUNK = 1 << 16;

/** Appends events. Each is in the operating system's hands when write() returns: a killed process loses none. */
export class EventWriter {
  readonly path: string;
  #fd: number;
  #size: number;

  constructor(path: string) {
    this.path = path;
    this.#fd = openSync(path, 'a+');
    this.#size = fstatSync(this.#fd).size;
    const whole = endOfLastLine(this.#fd, this.#size);
    if (whole < this.#size) ftruncateSync(this.#fd, (this.#size = whole));
  }

  write(event: NewRunEvent): RunEvent {
    const full = stamped(event);
    const line = Buffer.from(`${JSON.stringify(full)}\n`, 'utf8');
    try {
      for (let done = 0; done < line.byteLength; ) done += writeSync(this.#fd, line, done);
    } catch (error) {
      // Half a line would swallow the next one; take it back before reporting (a full disk, most likely).
      ftruncateSync(this.#fd, this.#size);
      throw new AnsatzError(`${this.path}: cannot be written (${(error as NodeJS.ErrnoException).code})`, {
        hint: 'free some disk space, then resume the run',
        cause: error,
      });
    }
    this.#size += line.byteLength;
    return full;
  }

  close(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
  }
}

/** Offset just after the last newline: everything up to there is whole lines. */
function endOfLastLine(fd: number, size: number): number {
  const chunk = Buffer.alloc(CHUNK);
  for (let end = size; end > 0; ) {
    const start = Math.max(0, end - CHUNK);
    const length = readSync(fd, chunk, 0, end - start, start);
    const at = chunk.subarray(0, length).lastIndexOf(NEWLINE);
    if (at >= 0) return start + at + 1;
    end = start;
  }
  return 0;
}

/** The last whole events of a log, without reading all of it; nothing when there is no log. */
export function lastEvents(path: string, bytes = 1 << 19): RunEvent[] {
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch {
    return [];
  }
  try {
    const { size } = fstatSync(fd);
    const tail = Buffer.alloc(Math.min(size, bytes));
    const length = readSync(fd, tail, 0, tail.byteLength, size - tail.byteLength);
    const events: RunEvent[] = [];
    for (const line of tail.toString('utf8', 0, length).split('\n').slice(0, -1)) {
      try {
        events.push(JSON.parse(line) as RunEvent);
      } catch {
        // The first line of a tail is usually cut.
      }
    }
    return events;
  } finally {
    closeSync(fd);
  }
}

export interface ReadOptions {
  /** Wait for more events at the end of the file, until a run-end event is its last line (or `over` says so). */
  follow?: boolean;
  /** Asked at the end of the file while following: true ends the iteration (e.g. the trainer's process is gone). */
  over?: () => boolean;
  signal?: AbortSignal;
  pollMs?: number;
}

/**
 * The events of a file, in order. A line that is not an event (a damaged disk, a careless edit) does not end the
 * iteration: a `warning` event that names the line takes its place.
 */
export async function* readEvents(path: string, options: ReadOptions = {}): AsyncGenerator<RunEvent, void, void> {
  const { follow = false, over, signal, pollMs = 200 } = options;
  let offset = 0;
  let lineNumber = 0;
  let last: RunEvent | undefined;
  while (!signal?.aborted) {
    // Asked before reading: whatever was written before the answer became true is still read below.
    const isOver = !follow || over?.() === true;
    const file = await openIfPresent(path, follow);
    if (file) {
      try {
        for await (const { line, end } of wholeLines(file, offset)) {
          offset = end;
          lineNumber++;
          if (line.trim() === '') continue;
          yield (last = parseEvent(line, path, lineNumber));
          if (signal?.aborted) return;
        }
      } finally {
        await file.close();
      }
    }
    if (isOver || last?.event === 'run-end') return;
    await sleep(pollMs, signal);
  }
}

export async function loadEvents(path: string): Promise<RunEvent[]> {
  const events: RunEvent[] = [];
  for await (const event of readEvents(path)) events.push(event);
  return events;
}

async function openIfPresent(path: string, follow: boolean): Promise<FileHandle | undefined> {
  try {
    return await open(path, 'r');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT' && follow) return undefined;
    throw new AnsatzError(`${path}: cannot be read (${(error as NodeJS.ErrnoException).code})`, { cause: error });
  }
}

// Lines are cut as bytes, before decoding: a chunk may end inside a UTF-8 character. The tail without a newline is
// not consumed; a follower reads it again from its start, so it need not care whether it was completed or removed.
async function* wholeLines(file: FileHandle, from: number): AsyncGenerator<{ line: string; end: number }> {
  let pending: Buffer[] = [];
  let position = from;
  for (;;) {
    const chunk = Buffer.alloc(CHUNK);
    const { bytesRead } = await file.read(chunk, 0, CHUNK, position);
    if (bytesRead === 0) return;
    let start = 0;
    for (let at = chunk.indexOf(NEWLINE); at >= 0 && at < bytesRead; at = chunk.indexOf(NEWLINE, start)) {
      const line = Buffer.concat([...pending, chunk.subarray(start, at)]).toString('utf8');
      pending = [];
      start = at + 1;
      yield { line, end: position + start };
    }
    // A short read is the end of the file. What is left there may be a torn line that its writer is about to take back,
    // so it is not joined with anything that comes later.
    if (bytesRead < CHUNK) return;
    if (start < bytesRead) pending.push(chunk.subarray(start, bytesRead));
    position += bytesRead;
  }
}

function parseEvent(line: string, path: string, lineNumber: number): RunEvent {
  try {
    const value: unknown = JSON.parse(line);
    if (typeof value === 'object' && value !== null && typeof (value as RunEvent).event === 'string') {
      return value as RunEvent;
    }
  } catch {
    // Reported below.
  }
  return stamped({ event: 'warning', message: `${path}: line ${lineNumber} is not an event and was skipped` });
}

function sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener('abort', done);
  });
}
