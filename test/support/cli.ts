// Runs bin/ansatz.mjs as a user or a program would, and checks what every command promises about its output.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, lstatSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { checkout } from './tiny-data.ts';

export const bin = join(checkout, 'bin', 'ansatz.mjs');

export interface CliOptions {
  cwd?: string;
  env?: Record<string, string | undefined>;
  /** Arguments of node itself. */
  node?: string[];
  /** Run as this user. */
  uid?: number;
  /** The script to run instead of the checkout's. */
  script?: string;
  /** Sees each line of stdout as it comes. */
  onLine?: (line: string, child: ChildProcess) => void;
}

export interface CliResult {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export function ansatz(args: readonly string[], options: CliOptions = {}): Promise<CliResult> {
  const { cwd = checkout, env = {}, node = [], uid, script = bin, onLine } = options;
  const child = spawn(process.execPath, [...node, script, ...args], {
    cwd,
    env: { ...process.env, NODE_OPTIONS: undefined, NODE_TEST_CONTEXT: undefined, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    ...(uid === undefined ? {} : { uid, gid: uid }),
  });
  const result: CliResult = { code: null, signal: null, stdout: '', stderr: '' };
  let line = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    result.stdout += text;
    if (!onLine) return;
    const lines = (line + text).split('\n');
    line = lines.pop()!;
    for (const one of lines) onLine(one, child);
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    result.stderr += text;
  });
  return new Promise((done, fail) => {
    child.on('error', fail);
    child.on('close', (code, signal) => done({ ...result, code, signal }));
  });
}

export interface JsonLine {
  event: string;
  [field: string]: unknown;
}

/** The lines of a successful --json run: every one an object with an event, nothing on stderr. */
export function jsonLines(result: CliResult, what: string): JsonLine[] {
  assert.equal(result.stderr, '', `${what}: stderr is empty`);
  assert.equal(result.code, 0, `${what}: exit code`);
  assert.ok(result.stdout.endsWith('\n'), `${what}: the last line is whole`);
  const lines = result.stdout.trimEnd().split('\n');
  return lines.map((line) => {
    const value = JSON.parse(line) as JsonLine;
    assert.equal(typeof value.event, 'string', `${what}: ${line}`);
    return value;
  });
}

/** The result line, which is the last one. */
export function resultOf(result: CliResult, command: string): JsonLine {
  const last = jsonLines(result, command).at(-1)!;
  assert.deepEqual([last.event, last.command], ['result', command]);
  return last;
}

/** Checks the form of a failure: one `error:` line, one `next:` line, nothing else, and the exit code. */
export function failure(result: CliResult, code: number, error: RegExp, next = /\S/): void {
  const lines = result.stderr.split('\n');
  assert.equal(lines.length, 3, `exactly two lines on stderr:\n${result.stderr}`);
  assert.match(lines[0], /^error: \S/);
  assert.match(lines[1], /^ {2}next: \S/);
  assert.match(lines[0], error);
  assert.match(lines[1], next);
  assert.doesNotMatch(result.stderr, /unexpected:|ANSATZ_DEBUG|\bat .*:\d+:\d+/, 'not a stack or an unforeseen error');
  assert.equal(result.code, code, result.stderr);
}

/** Every file below a folder with the hash of its contents: equal before and after when nothing was touched. */
export function contentsOf(folder: string, prefix = ''): Record<string, string> {
  const all: Record<string, string> = {};
  if (!existsSync(folder)) return all;
  for (const name of readdirSync(join(folder, prefix)).sort()) {
    const inside = join(prefix, name);
    const path = join(folder, inside);
    if (lstatSync(path).isDirectory()) Object.assign(all, { [`${inside}/`]: 'folder' }, contentsOf(folder, inside));
    else all[inside] = createHash('sha256').update(readFileSync(path)).digest('hex');
  }
  return all;
}

/** The results of several command lines, run in one process to save starting many. */
export function ansatzMany(lists: readonly (readonly string[])[]): Promise<CliResult[]> {
  const script = join(checkout, 'test', 'support', 'cli-batch.ts');
  const child = spawn(process.execPath, ['--import', 'tsx', script], {
    cwd: checkout,
    env: { ...process.env, NODE_OPTIONS: undefined, NODE_TEST_CONTEXT: undefined },
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  let stdout = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  child.stdin.end(JSON.stringify(lists));
  return new Promise((done, fail) => {
    child.on('error', fail);
    child.on('close', (code, signal) => {
      if (code === 0) done(JSON.parse(stdout) as CliResult[]);
      else fail(new Error(`the batch of commands ended with ${signal ?? code}: ${stdout.slice(-500)}`));
    });
  });
}

/** Commands that must fail alike, and what they must leave alone. */
export interface Refusal {
  name: string;
  error: RegExp;
  next?: RegExp;
  /** Makes the situation; called before any command of the group runs. */
  make: () => {
    commands: string[][];
    /** Folders that are afterwards as they were before. */
    untouched?: string[];
    /** What must not exist afterwards. */
    absent?: string[];
  };
}

/** A suite of failures, all with the same exit code, whose commands run in one process. */
export function refusals(title: string, code: number, cases: readonly Refusal[]): void {
  describe(title, () => {
    let made: (ReturnType<Refusal['make']> & { before: Record<string, string>[]; results: CliResult[] })[];
    before(async () => {
      made = cases.map((c) => {
        const situation = c.make();
        return { ...situation, before: (situation.untouched ?? []).map((f) => contentsOf(f)), results: [] };
      });
      const results = await ansatzMany(made.flatMap(({ commands }) => commands));
      for (const one of made) one.results = results.splice(0, one.commands.length);
    });
    cases.forEach(({ name, error, next }, k) => {
      test(name, () => {
        const { commands, untouched = [], absent = [], before, results } = made[k];
        assert.ok(commands.length > 0);
        for (const result of results) failure(result, code, error, next);
        untouched.forEach((folder, f) => {
          assert.deepEqual(contentsOf(folder), before[f], `${folder} is as it was`);
        });
        for (const path of absent) assert.equal(existsSync(path), false, `${path} was not made`);
      });
    });
  });
}
