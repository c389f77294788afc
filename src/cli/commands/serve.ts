/** ansatz serve: models behind OpenAI's API. */
import { Command } from 'commander';
import { action, number, type OutputFlags, repeated } from '../common.ts';
import { UsageError } from '../term/output.ts';

export interface ServeFlags extends OutputFlags {
  host: string;
  port: number;
  data: string;
  key?: string[];
  keys?: string;
  newKey?: string;
  requestsPerMinute?: number;
  tokensPerMinute?: number;
  cors?: string[];
  draft?: string;
  verify?: boolean;
  lookup?: boolean;
  sequences: number;
  queue: number;
  cacheBytes?: number;
  maxBody: number;
  stallTimeout: number;
}

/** Bytes, with K, M or G for powers of 1024. */
const bytes =
  (what: string) =>
  (text: string): number => {
    const [, digits, unit] = /^(\d+(?:\.\d+)?)\s*([KMG]?)i?B?$/i.exec(text.trim()) ?? [];
    const n = Number(digits) * 1024 ** ' KMG'.indexOf((unit || ' ').toUpperCase());
    if (!(n >= 1)) throw new UsageError(`${what} cannot be '${text}'`, { hint: `${what} 512M` });
    return Math.floor(n);
  };
const count = (what: string, most = Number.MAX_SAFE_INTEGER): ((text: string) => number) =>
  number(what, (n) => Number.isInteger(n) && n > 0 && n <= most);

export function serveCommand(): Command {
  const command = new Command('serve')
    .description("Serve trained runs to clients of OpenAI's API.")
    .argument('[runs...]', 'run folders; a model has its folder’s name, or another: name=folder')
    .option('--host <address>', 'address to listen on; all but loopback want a key', '127.0.0.1')
    .option(
      '--port <n>',
      'port to listen on; 0: any that is free',
      number('--port', (n) => Number.isInteger(n) && n >= 0 && n < 65536),
      8080,
    )
    .option('--data <folder>', 'where uploaded files, jobs and adapted models lie', 'ansatz-data')
    .addOption(repeated('--key <key>', 'an API key that may do everything; can be repeated'))
    .option('--keys <file>', 'API keys with scopes, models and rates (docs/serve.md)')
    .option('--new-key <name>', 'make a key of that name, add it to the file of --keys, print it, and end')
    .option('--requests-per-minute <n>', 'for every key without a rate of its own', count('--requests-per-minute'))
    .option('--tokens-per-minute <n>', 'for every key without a rate of its own', count('--tokens-per-minute'))
    .addOption(repeated('--cors <origin>', 'web pages that may use the server: https://example.org, or * for all'))
    .option('--verify', 'read all weights for their checksums, also where they were found right before')
    .option('--draft <run>', 'a small run with the same tokens that guesses ahead')
    .option('--lookup', 'guess ahead from the text itself')
    .option('--sequences <n>', 'texts that are written at a time, a model', count('--sequences', 1024), 64)
    .option('--queue <n>', 'texts that may wait, a model; more are turned away', count('--queue'), 1024)
    .option('--cache-bytes <n>', 'bytes for the cache of a model (512M, 2G)', bytes('--cache-bytes'))
    .option('--max-body <n>', 'bytes of a request or an uploaded file', bytes('--max-body'), 64 << 20)
    .option(
      '--stall-timeout <seconds>',
      'how long a client may take nothing of its answer; 0: as long as it likes',
      number('--stall-timeout', (n) => n >= 0 && n <= 86_400),
      300,
    )
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz serve runs/quickstart\n  ansatz serve small=runs/quickstart runs/other --port 9000 --lookup\n  ansatz serve --new-key laptop --keys keys.json\n  ansatz serve runs/quickstart --host 0.0.0.0 --keys keys.json',
    );
  return action(command, async (output, runs: string[], flags: ServeFlags) => {
    const { runServe } = await import('../actions/serve.ts');
    await runServe(output, runs, flags);
  });
}
