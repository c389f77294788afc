// What both of the README's commands do first: check Node, install dependencies if they are missing, build the addon.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');

export function fail(message, hint) {
  process.stderr.write(`error: ${message}\n  next: ${hint}\n`);
  process.exit(1);
}

/** Whether node_modules holds what the lockfile asks for. */
function installed() {
  const lock = join(root, 'node_modules', '.package-lock.json');
  if (!existsSync(lock)) return false;
  const want = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')).packages;
  const have = JSON.parse(readFileSync(lock, 'utf8')).packages;
  return Object.entries(want).every(([path, p]) => path === '' || p.optional || have[path]?.version === p.version);
}

/** Leaves a checkout that runs. `json` keeps stdout clean for events; what npm says is shown only when it fails. */
export async function setup({ json = false } = {}) {
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major < 20 || (major === 20 && minor < 19))
    fail(
      `Node ${process.versions.node} is too old: 20.19 or later is needed`,
      'install a newer Node.js, then run the command again',
    );
  if (!installed()) {
    if (!json) process.stdout.write('installing dependencies\n');
    const npm = spawnSync('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund'], {
      cwd: root,
      encoding: 'utf8',
    });
    if (npm.status !== 0)
      fail(
        `npm ci failed: ${(npm.stderr || String(npm.error)).trim().split('\n').slice(-3).join(' ')}`,
        'check the network, then run the command again',
      );
  }
  const { buildNative } = await import('./build-native.mjs');
  await buildNative({ json, quiet: json });
}
