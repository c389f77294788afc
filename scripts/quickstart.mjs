// npm run quickstart: set up if needed, then train a small model on real text. Arguments go to `ansatz quickstart`.
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { root, setup } from './setup.mjs';

const args = process.argv.slice(2);
const json = args.includes('--json');
await setup({ json });
const child = spawn(process.execPath, [join(root, 'bin', 'ansatz.mjs'), 'quickstart', ...args], {
  cwd: root,
  stdio: 'inherit',
});
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => child.kill(signal)); // the child saves and stops
child.on('exit', (code, signal) => {
  process.exitCode = signal ? 1 : (code ?? 1);
});
