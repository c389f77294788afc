// The house rules of the source tree: layers import downwards only, and files stay small enough to read.
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, sep } from 'node:path';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const layers = [
  ...['backend', 'tensor', 'nn', 'model', 'tricks', 'objectives', 'data', 'train', 'lab', 'infer', 'serve', 'cli'],
];

const filesIn = (folder: string, endings: readonly string[]): string[] =>
  existsSync(join(root, folder))
    ? readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
        .filter((f) => endings.some((e) => f.endsWith(e)) && !f.split(sep).includes('node_modules'))
        .map((f) => join(folder, f))
        .sort()
    : [];

/** Modules that a source names: static imports and exports, imports of types, dynamic imports. */
export function importsOf(source: string): string[] {
  const code = source.replace(/\/\*[\s\S]*?\*\//g, '').replace(/^\s*\/\/.*$/gm, '');
  const found = [
    ...code.matchAll(/\bfrom\s*['"]([^'"]+)['"]/g),
    ...code.matchAll(/\bimport\s*['"]([^'"]+)['"]/g),
    ...code.matchAll(/\bimport\s*\(\s*['"]([^'"]+)['"]/g),
  ];
  return found.map((m) => m[1]);
}

const layerOf = (file: string): string => file.split(sep)[1];

describe('layers', () => {
  const files = filesIn('src', ['.ts']);

  test('every source file lies in a layer', () => {
    assert.deepEqual(
      files.filter((f) => !layers.includes(layerOf(f))),
      [],
    );
  });

  test('a file imports from its own layer and those below only', () => {
    const wrong: string[] = [];
    let edges = 0;
    for (const file of files) {
      for (const name of importsOf(readFileSync(join(root, file), 'utf8'))) {
        if (!name.startsWith('.')) continue;
        const target = relative(root, join(root, dirname(file), name));
        edges++;
        if (!target.startsWith(`src${sep}`)) wrong.push(`${file} imports ${target}, outside src/`);
        else if (layers.indexOf(layerOf(target)) > layers.indexOf(layerOf(file)))
          wrong.push(`${file} imports ${target}: ${layerOf(target)} lies above ${layerOf(file)}`);
      }
    }
    assert.ok(edges > 100, `only ${edges} imports found`);
    assert.deepEqual(wrong, []);
  });

  test('imports of every form are seen', () => {
    const source = `
      import './a.ts'; import type { B } from "./b.ts"; export * from './c.ts';
      const d = await import('./d.ts'); // from './not.ts'
      /* import './nor-this.ts' */ import {
        e,
      } from './e.ts';`;
    assert.deepEqual(importsOf(source.replace(' // from', '\n // from')).sort(), [
      './a.ts',
      './b.ts',
      './c.ts',
      './d.ts',
      './e.ts',
    ]);
  });
});

describe('file sizes', () => {
  test('no source file is longer than 500 lines', (t) => {
    const sources = ['src', 'native', 'bench', 'recipes', 'scripts', 'test'].flatMap((folder) =>
      filesIn(folder, ['.ts', '.mjs', '.cpp', '.h', '.cu', '.cuh', '.svelte']),
    );
    const sizes = sources
      .map((file) => ({ file, lines: readFileSync(join(root, file), 'utf8').split('\n').length - 1 }))
      .sort((a, b) => b.lines - a.lines);
    for (const { file, lines } of sizes.slice(0, 5)) t.diagnostic(`${lines} lines: ${file}`);
    assert.deepEqual(
      sizes.filter((s) => s.lines > 500),
      [],
    );
  });
});
