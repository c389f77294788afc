#!/usr/bin/env node
// Starts the command line. In a checkout the TypeScript sources run as they are, through tsx.
const [major, minor] = process.versions.node.split('.').map(Number);
if (major < 20 || (major === 20 && minor < 19)) {
  process.stderr.write(
    `error: Node ${process.versions.node} is too old: 20.19 or later is needed\n  next: install a newer Node.js, then run the command again\n`,
  );
  process.exit(1);
}
try {
  const { register } = await import('tsx/esm/api');
  register();
} catch {
  process.stderr.write('error: dependencies are not installed\n  next: npm ci\n');
  process.exit(1);
}
const { main } = await import('../src/cli/main.ts');
await main(process.argv);
