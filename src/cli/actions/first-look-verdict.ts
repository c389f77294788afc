/** The three files of a first look, a short table for people, and verdicts computed anew from stored numbers. */
import { mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { AnsatzError } from '../../backend/errors.ts';
import { plotOf, type ReportInput, reasonOf, reportOf } from '../../lab/first-look/report.ts';
import { jsonOf, readStored } from '../../lab/first-look/stored.ts';
import type { Compared } from '../../lab/first-look/verdict.ts';
import { shortPath } from '../invocation.ts';
import { formatDuration } from '../term/format.ts';
import { type Output, UsageError } from '../term/output.ts';
import { table } from '../term/table.ts';

/** @throws UsageError when it is not the name of a Markdown file. */
export function markdownOf(out: string): string {
  if (!out.endsWith('.md')) throw new UsageError(`--out names a Markdown file (.md), not '${out}'`);
  return out;
}

export async function recompute(output: Output, from: string, out: string | undefined): Promise<void> {
  const target = markdownOf(out ?? from.replace(/(\.json)?$/, '.md'));
  writeVerdict(output, readStored(from), target);
}

/** @param run the folder that keeps the runs */
export function writeVerdict(output: Output, found: Omit<ReportInput, 'plot'>, out: string, run?: string): void {
  const stem = out.slice(0, -'.md'.length);
  const [svg, json] = [`${stem}.svg`, `${stem}.json`];
  const input = { ...found, plot: basename(svg) };
  const write = (path: string, text: string): void => {
    try {
      writeFileSync(`${path}.tmp`, text);
      renameSync(`${path}.tmp`, path);
    } catch (error) {
      rmSync(`${path}.tmp`, { force: true });
      throw error;
    }
  };
  try {
    mkdirSync(dirname(out), { recursive: true });
    // The numbers first: everything else can be made of them.
    write(json, `${JSON.stringify(jsonOf(input), null, 1)}\n`);
    write(svg, plotOf(found));
    write(out, reportOf(input));
  } catch (cause) {
    throw new AnsatzError(`${out} cannot be written: ${(cause as Error).message}`, {
      hint: 'give the same command with another --out: the results are kept',
      cause,
    });
  }
  const { verdicts } = found;
  const cells = (c: Compared | undefined): string[] =>
    c
      ? [
          `${c.difference < 0 ? '' : '+'}${c.difference.toFixed(3)}`,
          Number.isFinite(c.half) ? c.half.toFixed(3) : '?',
          c.verdict,
        ]
      : ['', '', ''];
  const right = { align: 'right' } as const;
  const lines = table(
    [
      { title: 'arm' },
      ...[{ title: 'equal positions', ...right }, { title: '±', ...right }, { title: '' }],
      ...[{ title: 'equal time', ...right }, { title: '±', ...right }, { title: '' }],
    ],
    verdicts.rows.map((row) => {
      if (!row.positions && !row.time) return [row.arm.name, '', '', 'no result'];
      return [row.arm.name, ...cells(row.positions), ...(row.shared ? ['same run', '', ''] : cells(row.time))];
    }),
  );
  const { base, floor, usual, enlarged, comparisons } = verdicts;
  output.result(
    'lab first-look',
    {
      ...{ out, plot: svg, numbers: json, ...(run ? { run } : {}) },
      ...{ base, floor, usual, enlarged, comparisons },
      arms: verdicts.rows.map(({ arm, positions, time, shared, failed }) => ({
        name: arm.name,
        ...{ positions, time, shared, failed, refused: arm.refused },
      })),
      seconds: found.seconds,
    },
    [
      '',
      ...lines,
      ...verdicts.rows.flatMap((row) => {
        const reason = reasonOf(found, row);
        return reason ? [`${row.arm.name}: ${reason}`] : [];
      }),
      '',
      `differences in held-out bits per byte from the base's ${base.mean.toFixed(4)}; runs of the base have a standard deviation of ${floor.toFixed(4)}`,
      `verdict: ${shortPath(out)}  plot: ${shortPath(svg)}  numbers: ${shortPath(json)}`,
      ...(run ? [`kept in ${shortPath(run)}; all of it took ${formatDuration(found.seconds)}`] : []),
    ],
  );
}
