/** The file of all numbers: written beside the verdict, and read to compute verdicts anew. */
import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { z } from 'zod';
import { AnsatzError } from '../../backend/errors.ts';
import { type Arm, BASE } from './arms.ts';
import type { ReportInput } from './report.ts';
import { type Done, judge } from './verdict.ts';

const FORMAT = 'ansatz first look ';

/** Everything as data. */
export function jsonOf(r: ReportInput) {
  const { plan, verdicts, machine, command, date, seconds, compressors } = r;
  const { base, floor, usual, enlarged, unsteady, comparisons, alpha } = verdicts;
  return {
    format: `${FORMAT}${plan.format}`,
    ...{ command, date, machine, seconds, compressors },
    settings: plan.settings,
    sources: plan.sources,
    heldOut: plan.heldOut,
    baseSteps: plan.steps,
    speeds: plan.speeds,
    ...{ base, floor, usual, enlarged, unsteady, comparisons, alpha },
    arms: r.arms.map((arm) => {
      const row = verdicts.rows.find((x) => x.arm.name === arm.name);
      const { config, ...rest } = arm;
      const shown = config && { ...config, data: { ...config.data, folder: 'data' } };
      return { ...rest, config: shown, ...(row && { positions: row.positions, time: row.time, shared: row.shared }) };
    }),
    runs: r.done,
  };
}

const count = z.number().nonnegative();
/** What is computed with is checked; the rest is only shown. */
const schema = z.looseObject({
  format: z.enum([`${FORMAT}1`, `${FORMAT}2`]),
  command: z.string(),
  date: z.string(),
  machine: z.looseObject({ cpu: z.string(), cores: count, level: z.string(), node: z.string(), platform: z.string() }),
  seconds: count,
  compressors: z.record(z.string(), z.number()),
  settings: z.looseObject({ seeds: count, workers: count, size: z.looseObject({ width: count, depth: count }) }),
  sources: z.array(z.looseObject({ name: z.string(), documents: count, bytes: count })),
  heldOut: z.looseObject({ tokens: count, bytes: count }),
  baseSteps: count,
  speeds: z.record(z.string(), z.looseObject({})),
  arms: z.array(
    z.looseObject({
      ...{ name: z.string(), group: z.string(), notes: z.array(z.string()) },
      ...{ parameters: count, positionsPerStep: count, flopsPerPosition: count },
    }),
  ),
  runs: z.array(
    z.looseObject({
      run: z.looseObject({
        ...{ id: z.string(), arm: z.string(), seed: count, steps: count },
        answers: z.enum(['positions', 'time', 'both']),
      }),
      result: z.looseObject({ bitsPerByte: z.number(), targets: count, seconds: count, cpuSeconds: count }).optional(),
      failed: z.string().optional(),
    }),
  ),
});

/**
 * Findings from a file of numbers, judged anew.
 * @throws AnsatzError when it is no such file.
 */
export function readStored(path: string): Omit<ReportInput, 'plot'> {
  const refuse = (why: string, cause?: unknown): AnsatzError =>
    new AnsatzError(`${path}: ${why}`, { hint: 'give the .json file that lies beside a verdict', cause });
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    throw refuse(code === 'ENOENT' ? 'does not exist' : `cannot be read (${code})`, cause);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw refuse('is not valid JSON', cause);
  }
  const parsed = schema.safeParse(value);
  if (!parsed.success) {
    const [{ path: where, message }] = parsed.error.issues;
    throw refuse(`holds no results of a first look: ${where.join('.') || 'the file'}: ${message}`, parsed.error);
  }
  const s = parsed.data;
  // What was found stands beside each arm; it is found anew.
  const arms = s.arms.map(({ positions: _p, time: _t, shared: _s, ...own }) => own as unknown as Arm);
  const done = s.runs as unknown as Done[];
  const stranger = done.find((d) => !arms.some((a) => a.name === d.run.arm));
  if (stranger) throw refuse(`has a run of '${stranger.run.arm}', which is not among its arms`);
  if (!arms.some((a) => a.name === BASE && a.config) || !done.some((d) => d.run.arm === BASE && d.result))
    throw refuse('has no run of the base');
  const { command, date, machine, seconds, compressors, settings, sources, heldOut, speeds } = s;
  return {
    plan: {
      ...({ settings, sources, heldOut, speeds } as unknown as Omit<ReportInput['plan'], 'format' | 'steps'>),
      format: s.format === `${FORMAT}1` ? 1 : 2,
      steps: s.baseSteps,
    },
    ...{ arms, done, verdicts: judge(arms, done), seconds, machine, command, date, compressors },
    from: basename(path),
  };
}
