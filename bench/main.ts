/** npm run bench -- NAME [--json]: runs a benchmark and prints a row as soon as it is measured. */
import { availableParallelism, cpus } from 'node:os';
import { Output, runCommand, UsageError } from '../src/cli/term/output.ts';
import type { Bench, Row } from './harness.ts';

const benches: Record<string, () => Promise<{ run: Bench }>> = {
  gemm: () => import('./gemm.ts'),
  'train-cpu': () => import('./train-cpu.ts'),
  tokenizer: () => import('./tokenizer.ts') as Promise<{ run: Bench }>,
  overhead: () => import('./overhead.ts'),
  moe: () => import('./moe.ts'),
  'decode-dense': () => import('./decode-dense.ts'),
  prefill: () => import('./prefill.ts'),
  serve: () => import('./serve.ts'),
  'decode-sparse': () => import('./decode-sparse.ts'),
  'decode-matmul': () => import('./decode-matmul.ts'),
  attention: () => import('./attention.ts'),
};

const args = process.argv.slice(2);
const json = args.includes('--json');
const names = args.filter((a) => !a.startsWith('--'));
const usage = `usage: npm run bench -- NAME... [--json]\n\nNames: ${Object.keys(benches).join(', ')}.\nPyTorch is the peer where it is found: set PEER_PYTHON to a python that imports torch.`;

/** Of milliseconds. */
interface Spread {
  readonly p50: number;
  readonly p99: number;
}

const format = (r: Row): string => {
  const digits = (x: number): string => (x >= 100 ? x.toFixed(0) : x.toPrecision(3));
  const peer = r.peer === null ? '' : `  ${r.peerName ?? 'peer'} ${digits(r.peer)}  ratio ${r.ratio!.toFixed(2)}`;
  const rates =
    typeof r.gflops === 'number'
      ? `  ${digits(r.gflops)} GFLOP/s  ${digits(r.gbps as number)} GB/s  ${((r.share as number) * 100).toFixed(1)}%`
      : '';
  const memory =
    typeof r.memoryRatio === 'number'
      ? `  ${((r.bytes as number) / 1e6).toFixed(0)} MB, ratio ${r.memoryRatio.toFixed(2)}`
      : '';
  const { ttft, tpot, sent, lost } = r as { ttft?: Spread; tpot?: Spread; sent?: number; lost?: number };
  const both = ({ p50, p99 }: Spread): string => `${digits(p50)}/${digits(p99)} ms`;
  const felt = ttft && tpot ? `  first ${both(ttft)}  each ${both(tpot)}  ${sent} sent, ${lost} lost` : '';
  return `${r.name.padEnd(44)} ${digits(r.ours).padStart(8)} ${r.unit}${peer}${rates}${memory}${felt}`;
};

if (args.includes('--help')) process.stdout.write(`${usage}\n`);
else
  await runCommand(new Output({ json, plain: true }), async () => {
    if (names.length === 0)
      throw new UsageError('which benchmark?', { hint: `npm run bench -- ${Object.keys(benches).join('|')}` });
    for (const name of names)
      if (!(name in benches))
        throw new UsageError(`no benchmark '${name}'`, { hint: `choose from ${Object.keys(benches).join(', ')}` });
    const machine = { cpu: cpus()[0]?.model ?? 'unknown', threads: availableParallelism(), node: process.version };
    for (const name of names)
      for await (const row of (await benches[name]()).run())
        process.stdout.write(`${json ? JSON.stringify({ ...row, machine }) : format(row)}\n`);
  });
