// npm test: set up if needed, then every tier of tests that this machine can run.
//
//   null  no native code          cpu  the addon, on every instruction-set level of this CPU
//   cuda  a GPU that answers      slow everything that takes more than a few seconds a test
//
//   npm test [-- TIER ...] [-- --only PATTERN]
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join, relative } from 'node:path';
import { root, setup } from './setup.mjs';

const args = process.argv.slice(2);
const at = args.indexOf('--only');
const pattern = at >= 0 ? args.splice(at, 2)[1] : undefined;
const tiers = args.length ? args : ['null', 'cpu', 'slow'];

await setup();

// The types are part of the contract.
const tsc = spawnSync(process.execPath, [join(root, 'node_modules', 'typescript', 'bin', 'tsc'), '--noEmit'], {
  cwd: root,
  encoding: 'utf8',
});
if (tsc.status !== 0) {
  process.stdout.write(tsc.stdout);
  process.stderr.write('error: the sources do not type-check\n  next: npx tsc --noEmit\n');
  process.exit(1);
}

const files = tiers.flatMap((tier) => {
  const folder = join(root, 'test', tier);
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true })
    .filter((f) => f.endsWith('.test.ts') && (!pattern || f.includes(pattern)))
    .sort()
    .map((f) => relative(root, join(folder, f)));
});
if (files.length === 0) {
  process.stderr.write(
    `error: no tests in tiers ${tiers.join(', ')}${pattern ? ` that match '${pattern}'` : ''}\n  next: choose from null, cpu, slow\n`,
  );
  process.exit(1);
}
// One process a file: a crash in native code costs one file. Two at a time: kernels use every core already.
const child = spawn(
  process.execPath,
  ['--import', 'tsx', '--test', '--test-concurrency=2', '--test-reporter=spec', ...files],
  { cwd: root, stdio: 'inherit' },
);
child.on('exit', (code, signal) => {
  process.exitCode = signal ? 1 : (code ?? 1);
});
