/** The verdict file: what was done, on what, and the numbers; no claims beyond them. */
import { type Arm, BASE, CONTROL } from './arms.ts';
import { BASE_RATE } from './base.ts';
import { type DotRow, dotPlot } from './dots.ts';
import { SAME_SPEED } from './fair.ts';
import { EQUAL } from './fit.ts';
import type { PlanFile } from './folder.ts';
import type { SpeedResult } from './task.ts';
import type { Compared, Done, Row, Verdicts } from './verdict.ts';

/** Where and with what it ran. */
export interface Machine {
  readonly cpu: string;
  readonly cores: number;
  readonly level: string;
  readonly node: string;
  readonly platform: string;
}

/** What a comparison found. */
export interface Findings {
  readonly plan: Pick<PlanFile, 'format' | 'settings' | 'sources' | 'heldOut' | 'speeds' | 'steps'>;
  readonly arms: readonly Arm[];
  readonly done: readonly Done[];
  readonly verdicts: Verdicts;
  /** Seconds of all sittings. */
  readonly seconds: number;
}

export interface ReportInput extends Findings {
  readonly machine: Machine;
  readonly command: string;
  readonly date: string;
  /** Name of the file of results that these verdicts were computed from, when it was not the command itself. */
  readonly from?: string;
  /** Bits per byte of general compressors on all of the held-out text. */
  readonly compressors: Readonly<Record<string, number>>;
  /** File name of the plot, beside the report. */
  readonly plot: string;
}

const signed = (x: number, digits = 3): string => `${x < 0 ? '-' : '+'}${Math.abs(x).toFixed(digits)}`;
const times = (x: number): string => `${x.toFixed(2)}x`;
const interval = (c: Compared): string =>
  `${signed(c.difference)}${Number.isFinite(c.half) ? ` ± ${c.half.toFixed(3)}` : ''}`;
const word = (c: Compared): string =>
  c.verdict === 'better' || c.verdict === 'worse' ? `**${c.verdict}**` : c.verdict;
const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('\n', ' ');

const speedOf = (r: Findings, name: string): SpeedResult | undefined => {
  const speed = r.plan.speeds[name];
  return speed && !('failed' in speed) ? speed : undefined;
};

/** Why an arm has no numbers; empty when it has. */
export function reasonOf(r: Findings, row: Row): string {
  const speed = r.plan.speeds[row.arm.name];
  if (row.arm.refused) return `refused: ${row.arm.refused}`;
  if (speed && 'failed' in speed) return `failed: ${speed.failed}`;
  return row.failed.length > 0 ? `failed: ${row.failed.join('; ')}` : '';
}

/** Rows of the table: arm, size, speed, then both comparisons. */
function tableRow(r: Findings, row: Row, baseFlops: number, baseParameters: number): string[] {
  const { arm, positions: a, time: b } = row;
  const reason = reasonOf(r, row);
  const notes = [...arm.notes, ...(reason ? [reason] : [])];
  if (b && !row.shared && Math.abs(b.timeRatio - 1) > 0.05)
    notes.push(`equal time was planned, ${times(b.timeRatio)} was taken`);
  if (r.verdicts.unsteady.includes(arm.name)) notes.push('its runs differ far more than those of others');
  const speed = speedOf(r, arm.name);
  const time = arm.name === CONTROL ? '1.00x' : speed ? times(speed.ratio) : '';
  const both = (c: Compared | undefined, same: boolean): string[] =>
    !c ? ['', '', ''] : [same ? 'same run' : c.mean.toFixed(3), same ? '' : interval(c), same ? '' : word(c)];
  return [
    arm.name,
    arm.refused
      ? ''
      : `${arm.parameters.toLocaleString('en-US')} (${signed(100 * (arm.parameters / baseParameters - 1), 1)}%)`,
    arm.refused ? '' : times(arm.flopsPerPosition / baseFlops),
    time,
    ...both(a, false),
    b && !row.shared ? String(b.steps) : '',
    ...both(b, row.shared && a !== undefined),
    notes.join('; '),
  ];
}

function tables(r: Findings): string[] {
  const base = r.arms.find((a) => a.name === BASE)!;
  const head = [
    ...['arm', 'parameters', 'FLOP a position', 'time a step'],
    ...['equal positions: bits/byte', 'difference', 'verdict'],
    ...['equal time: steps', 'bits/byte', 'difference', 'verdict', 'notes'],
  ];
  const line = (cells: readonly string[]): string => `| ${cells.map(cell).join(' | ')} |`;
  const out: string[] = [];
  for (const group of new Set(r.verdicts.rows.map((row) => row.arm.group))) {
    out.push('', `### ${group}`, '', line(head), `|${'---|'.repeat(head.length)}`);
    for (const row of r.verdicts.rows.filter((x) => x.arm.group === group))
      out.push(line(tableRow(r, row, base.flopsPerPosition, base.parameters)));
  }
  return out;
}

/** The same as a picture. */
export function plotOf(r: Findings): string {
  let group = '';
  const rows = r.verdicts.rows.map((row): DotRow => {
    const first = row.arm.group !== group;
    group = row.arm.group;
    const dots = [row.positions, row.shared ? undefined : row.time].flatMap((c, series) =>
      c ? [{ value: c.difference, half: c.half, series }] : [],
    );
    return { label: row.arm.name, ...(first ? { group } : {}), dots };
  });
  return dotPlot({
    title: 'Held-out bits per byte against the dense base (left of 0 is better)',
    axis: 'difference in bits per byte, 95% interval (not corrected for the number of comparisons)',
    series: ['equal positions', 'equal time'],
    rows,
  });
}

/** How differences became verdicts. */
function statistics({ plan, verdicts: v, arms, done }: Findings): string {
  const runs = (name: string): number => done.filter((d) => d.run.arm === name && d.result).length;
  const independent =
    plan.format === 1
      ? 'Runs of one seed read the text in one order and had the same initial values of parameters of the same name and shape (the control, and arms of other shapes, had others); they are judged as if they were independent.'
      : 'Each run has its own initial values and its own order of the text, so all runs are independent; a difference of two arms is not helped by common luck, nor spoilt where only some arms share it.';
  const many = v.usual.df >= 1000 ? 'as many as there are' : `${v.usual.df}`;
  const enlarged =
    v.enlarged > 1
      ? ` The control alone would have been distinguished without correction, so all errors are multiplied by ${v.enlarged.toFixed(2)}, with which it is not.`
      : ' The control alone, without correction, is not distinguished either.';
  return [
    `**Statistics.** ${independent} ${plan.settings.seeds} runs an arm and question, ${runs(BASE)} of the base, ${runs(CONTROL)} of its control.`,
    `A difference is that of two means. The variance of an arm's runs combines its own (few degrees of freedom) with what is usual among all arms (standard deviation ${v.usual.sigma.toFixed(4)}, worth ${many} degrees of freedom: moderated t, Smyth 2004), and is taken as no less than its own, nor than that of the base and its control together (standard deviation of a run ${v.floor.toFixed(4)}).${arms.some((a) => a.name === CONTROL) ? enlarged : ''}`,
    `Intervals are 95% intervals of Student's t for one comparison, with Satterthwaite's degrees of freedom. A verdict is given when the two-sided p-value, corrected for all ${v.comparisons} comparisons (Holm), is below ${v.alpha}${plan.format === 1 ? '' : `, so that the chance of any false verdict in the whole table is at most ${v.alpha}`}; otherwise the arm is not distinguished from the base, which is not the same as being equal.`,
    'All differences share the runs of the base. The held-out text is one sample; its choice is not part of the error.',
  ].join(' ');
}

/** Markdown of the verdict. */
export function reportOf(r: ReportInput): string {
  const { plan, verdicts: v, machine } = r;
  const { settings } = plan;
  const { size } = settings;
  const base = r.arms.find((a) => a.name === BASE)!;
  const positions = plan.steps * base.positionsPerStep;
  const sources = plan.sources.map((s) => `${s.name} (${s.documents} documents, ${(s.bytes / 1e6).toFixed(1)} MB)`);
  const check = speedOf(r, BASE);
  const counts = (w: string): number =>
    v.rows.flatMap((x) => [x.positions, x.shared ? undefined : x.time]).filter((c) => c?.verdict === w).length;
  const without = v.rows.filter((row) => !row.positions && !row.time).length;
  const compressors = Object.entries(r.compressors).map(([name, bits]) => `${name} ${bits.toFixed(3)}`);
  const ran = r.done.flatMap((d) => d.result ?? []);
  const sum = (of: (x: (typeof ran)[number]) => number): number => ran.reduce((n, x) => n + of(x), 0);
  const busy = sum((x) => x.seconds) / sum((x) => x.cpuSeconds);
  const trained = r.done.reduce((n, { run }) => {
    const arm = r.arms.find((a) => a.name === run.arm)!;
    return n + run.steps * arm.positionsPerStep;
  }, 0);
  return `${[
    '# First look: each trick against the dense base',
    '',
    'Very small models and very little training: the numbers below say what happened here, at this size and in this time.',
    'They are no evidence about larger models, longer training, longer rows, tuned rates, or what a trick is for besides',
    'loss (decoding speed, memory, fine-tuning, infilling).',
    '',
    `- **Command:** \`${r.command}\``,
    `- **Date:** ${r.date}`,
    `- **Machine:** ${machine.cpu}, ${machine.cores} cores used by ${settings.workers} processes of one thread (${machine.level}), Node ${machine.node}, ${machine.platform}`,
    `- **Took:** ${(r.seconds / 60).toFixed(1)} minutes for ${r.done.length} trainings, ${(trained / 1e6).toFixed(1)}M positions; a training took ${busy.toFixed(2)} times its processor time${busy > 1.1 ? ' (the machine had other work)' : ''}`,
    `- **Text:** ${sources.join(', ')}; held out: whole documents, ${plan.heldOut.tokens.toLocaleString('en-US')} tokens (${(plan.heldOut.bytes / 1e3).toFixed(0)} kB held out in all)${compressors.length > 0 ? `; ${compressors.join(', ')} bits per byte` : ''}`,
    ...(r.from
      ? [`- **Verdicts:** computed from the stored results with \`ansatz lab first-look --from ${r.from}\``]
      : []),
    '',
    '## Result',
    '',
    `${v.comparisons} comparisons with the base, corrected together: ${counts('better')} better, ${counts('worse')} worse, ${counts('not distinguished')} not distinguished${without > 0 ? `; ${without} without a result, with the reason in the table` : ''}.`,
    '',
    `The base: ${v.base.mean.toFixed(3)} bits per byte over ${v.base.values.length} runs (${v.base.values.map((x) => x.toFixed(3)).join(', ')}; standard deviation ${v.base.deviation.toFixed(4)}), ${base.parameters.toLocaleString('en-US')} parameters, ${plan.steps} steps of ${base.positionsPerStep} tokens (${(positions / 1e6).toFixed(2)}M).`,
    '',
    `![differences with the base](${r.plot})`,
    ...tables(r),
    '',
    '## Method',
    '',
    `**Base.** Decoder, width ${size.width}, ${size.depth} blocks, ${size.heads} heads, gated feed-forward of ${size.hidden} units, RMSNorm, RoPE, tied embeddings, vocabulary ${base.config!.model.vocab}, rows of ${size.length} tokens, ${size.batch} rows a step, ${size.precision ?? 'bf16'}; AdamW at ${BASE_RATE}, 3% warm-up, the last 60% decay to 0.`,
    '',
    "**Arms.** Each registered trick that is a change of config, with the values its own patch suggests, and otherwise the base's settings. No arm was tuned; the base's rate, batch and width were chosen from 13 single runs on such text, which favours the base. Rates are the base's; other optimisers have theirs in the ratio of their defaults to AdamW's default. `base-again` is the base once more: what differs there is chance. `moe-wide` has the base's active parameters and more in all.",
    '',
    `**Equal parameters.** Feed-forward units are added or taken away until the trainable parameters (special tokens of an objective included) are those of the base; all within ${100 * EQUAL}% unless the notes say otherwise.`,
    '',
    '**Equal positions.** As many positions are computed as by the base, encoder and decoder together. This matches tokens through the model, not FLOPs (their ratio is in the table) and not targets: objectives with fewer targets than positions have that in their notes.',
    '',
    `**Equal time.** As many steps as take the time of the base's, the schedule stretched over them. The time of a step, reading its rows included, was measured as processor time of one thread, in turns with the base (${check ? `${check.rounds} rounds; the base against itself gave ${check.ratio.toFixed(3)}` : 'several rounds'}), with as many processes running as in training. What the trainings then took is compared again: differences above 5% are in the notes. Where both counts of steps are within ${100 * SAME_SPEED}% of each other, one run answers both questions. Set-up and evaluation are not counted.`,
    '',
    '**Evaluation.** All arms predict the same held-out text from left to right, whatever they were trained on, every target from the same tokens: rows overlap by half, and an encoder-decoder has the first half in its encoder. A decoder gets no mode or control tokens. Bits per byte count every token of the text once.',
    '',
    statistics(r),
    '',
    'All numbers, run by run, are in the JSON file beside this one.',
  ].join('\n')}\n`;
}
