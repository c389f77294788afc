// Runs many command lines one after the other in this one process: reads a JSON list of argument lists on stdin, writes
// the list of results. A process of its own, so that nothing else writes to its streams.
import { main } from '../../src/cli/main.ts';
import type { CliResult } from './cli.ts';

const lists = JSON.parse(
  await new Promise<string>((done) => {
    let text = '';
    process.stdin
      .setEncoding('utf8')
      .on('data', (part) => (text += part))
      .on('end', () => done(text));
  }),
) as string[][];

process.stdout.setMaxListeners(0);
const write = process.stdout.write.bind(process.stdout);
const results: CliResult[] = [];
for (const args of lists) {
  const result: CliResult = { code: 0, signal: null, stdout: '', stderr: '' };
  const into =
    (name: 'stdout' | 'stderr') =>
    (text: string | Uint8Array): boolean => {
      result[name] += typeof text === 'string' ? text : Buffer.from(text).toString('utf8');
      return true;
    };
  process.stdout.write = into('stdout') as typeof process.stdout.write;
  process.stderr.write = into('stderr') as typeof process.stderr.write;
  process.exitCode = 0;
  await main([process.execPath, 'ansatz', ...args]);
  result.code = Number(process.exitCode);
  results.push(result);
}
process.exitCode = 0;
write(JSON.stringify(results));
