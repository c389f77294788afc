/**
 * Code of one instruction-set level must not be reachable from another: a symbol that two levels share is merged by the
 * linker, and an old CPU could then run instructions it does not have (native/core/kernel.h).
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import test from 'node:test';
import { fileURLToPath } from 'node:url';
import { native } from '../../src/backend/native.ts';

const build = join(dirname(fileURLToPath(import.meta.url)), '..', '..', 'build');
const hasNm = spawnSync('nm', ['--version']).status === 0;

/** Global symbols that an object defines: kind and name. */
function defined(object: string): { kind: string; name: string }[] {
  const { stdout } = spawnSync('nm', ['-C', '--defined-only', object], { encoding: 'utf8' });
  return stdout
    .split('\n')
    .map((line) => /^[0-9a-f]+ (\w) (.*)$/.exec(line))
    .filter((m) => m !== null)
    .map((m) => ({ kind: m[1], name: m[2] }));
}

test('kernel objects define nothing but their own table', { skip: hasNm ? false : 'nm is not installed' }, () => {
  const levels = native().facts().levels;
  let kernels = 0;
  for (const file of readdirSync(join(build, 'obj')).filter((f) => f.endsWith('.o'))) {
    const symbols = defined(join(build, 'obj', file));
    const tables = symbols.filter((s) =>
      levels.some((l) => s.name.startsWith('ansatz::table_') && s.name.endsWith(`_${l}`)),
    );
    if (tables.length === 0) continue; // not a kernel family
    kernels++;
    // W, V and u are weak or unique: what the linker would merge. T, D, B, R are global.
    const shared = symbols.filter((s) => /[WVuTDBR]/.test(s.kind) && !tables.some((t) => t.name === s.name));
    const allowed = shared.filter((s) => !levels.some((l) => s.name.includes(`_${l}`)));
    assert.deepEqual(
      allowed.map((s) => `${s.kind} ${s.name}`),
      [],
      `${tables[0].name} shares symbols with other levels`,
    );
  }
  assert.ok(kernels >= levels.length * 5, `found ${kernels} kernel objects`);
});

test('every level offers every kernel', () => {
  const source = readFileSync(join(build, 'registry.gen.cpp'), 'utf8');
  const families = new Map<string, Set<string>>();
  for (const [, level, family] of source.matchAll(/\{"(\w+)", &table_(\w+)_\w+\}/g))
    families.set(family.replace(/_$/, ''), (families.get(family.replace(/_$/, '')) ?? new Set()).add(level));
  assert.ok(families.size > 10);
  for (const [family, levels] of families) assert.equal(levels.size, native().facts().levels.length, family);
});
