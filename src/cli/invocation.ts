/** Commands as they must be typed here: what is printed can be copied and run. */
import { existsSync } from 'node:fs';
import { basename, dirname, isAbsolute, join, relative, resolve, sep } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The folder of this package: a checkout, or where it is installed. */
export const packageRoot = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..');

/** The folder that npm would call the current project. */
function project(cwd: string): string | undefined {
  for (let folder = resolve(cwd); ; folder = dirname(folder)) {
    if (existsSync(join(folder, 'package.json'))) return folder;
    if (folder === dirname(folder)) return undefined;
  }
}

/**
 * What starts this program from the current folder. npx finds a package's own command in its checkout, and that of an
 * installed package in the project that has it; anywhere else it would look for a package on the network.
 */
export function invocation(cwd: string = process.cwd(), script: string = process.argv[1] ?? ''): string {
  if (project(cwd) === packageRoot || script.includes(`node_modules${sep}.bin${sep}`)) return 'npx ansatz';
  if (basename(script) === 'ansatz') return 'ansatz';
  return `node ${quoted(join(packageRoot, 'bin', 'ansatz.mjs'))}`;
}

/** Text with every `ansatz COMMAND` in it as it must be typed here. */
export function spoken(text: string, prefix: string = invocation()): string {
  return text.replace(/(?<=^|[\s`])ansatz (?=[a-z[<-])/gm, () => `${prefix} `);
}

/** A word for a shell. */
export function quoted(word: string): string {
  return /^[\w@%+=:,./~-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

/** A path as short as it can be said from the current folder. */
export function shortPath(path: string, cwd: string = process.cwd()): string {
  const near = relative(cwd, resolve(cwd, path));
  return near === '' ? '.' : near.startsWith('..') || isAbsolute(near) ? resolve(cwd, path) : near;
}
