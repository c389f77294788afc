// What is shipped is what the sources build to, byte for byte; and the sources and templates type-check.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { checkout, temporaryFolder } from '../support/tiny-data.ts';

const shipped = join(checkout, 'web', 'dist');
const contents = (folder: string): Record<string, string> =>
  Object.fromEntries(
    readdirSync(folder, { recursive: true, encoding: 'utf8' })
      .sort()
      .map((name) => [name, readFileSync(join(folder, name), 'utf8')]),
  );

test('web/dist is what web/src builds to', async (t) => {
  const outDir = join(temporaryFolder('web-build'), 'dist');
  let build: typeof import('vite').build;
  try {
    ({ build } = await import('vite'));
  } catch (error) {
    const why = `vite cannot run here: ${(error as Error).message.split('\n')[0]}`;
    process.stderr.write(`\nSKIPPED: ${why}; web/dist is not compared with its sources\n\n`);
    t.skip(why);
    return;
  }
  const configFile = join(checkout, 'web', 'vite.config.mjs');
  await build({ configFile, logLevel: 'silent', build: { outDir, emptyOutDir: true } });
  const [built, kept] = [contents(outDir), contents(shipped)];
  assert.deepEqual(Object.keys(kept), Object.keys(built), 'the same files');
  const stale = Object.keys(built).filter((name) => built[name] !== kept[name]);
  assert.deepEqual(stale, [], 'run `npm run web` and commit web/dist');
});

test('nothing in the page is inline, and nothing in it names another host', () => {
  const files = contents(shipped);
  assert.doesNotMatch(files['index.html'], /<style|<script(?![^>]*\bsrc=)|\son\w+=|style=/);
  for (const [name, text] of Object.entries(files)) {
    const hosts = [...text.matchAll(/https?:\/\/([\w.-]+)/g)].map((m) => m[1]);
    // Names of XML vocabularies, and addresses in the messages of a framework, are never asked for.
    const known = ['www.w3.org', 'svelte.dev'];
    assert.deepEqual(
      hosts.filter((h) => !known.includes(h)),
      [],
      name,
    );
  }
});

test('the sources of the page type-check', () => {
  const tsc = join(checkout, 'node_modules', 'typescript', 'bin', 'tsc');
  const run = spawnSync(process.execPath, [tsc, '-p', join(checkout, 'web')], { encoding: 'utf8' });
  assert.equal(run.status, 0, run.stdout + run.stderr);
});

const checker = join(checkout, 'web', 'check', 'node_modules', 'svelte-check', 'bin', 'svelte-check');
const unchecked = existsSync(checker)
  ? false
  : 'TEMPLATES NOT TYPE-CHECKED: (cd web/check && npm ci --ignore-scripts) installs svelte-check';

test('its templates type-check, without warnings', { skip: unchecked }, () => {
  const how = ['--workspace', join(checkout, 'web'), '--tsconfig', './tsconfig.json', '--fail-on-warnings'];
  const run = spawnSync(process.execPath, [checker, ...how, '--output', 'human'], { encoding: 'utf8' });
  assert.equal(run.status, 0, run.stdout + run.stderr);
  assert.match(run.stdout, /found 0 errors and 0 warnings/);
});
