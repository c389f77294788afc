// One frame of the live view, as a pure function of what is known and the size of the terminal.
import { drawCurve, lossRange, type Series } from './curve.ts';
import {
  displayWidth,
  flow,
  formatCount,
  formatDuration,
  formatInteger,
  formatLoss,
  formatPercent,
  formatRate,
  pad,
  printable,
} from './format.ts';
import type { LiveState } from './live-state.ts';
import type { Output } from './output.ts';
import { drawBar } from './progress.ts';

const MAX_CURVE_ROWS = 22;
const MIN_CURVE_ROWS = 6;
const MAX_WIDTH = 160;

export interface FrameOptions extends Pick<Output, 'style' | 'unicode' | 'columns' | 'rows'> {
  title: string;
  /** Last line, e.g. what Ctrl-C does. */
  footer?: string;
}

export function drawFrame(state: LiveState, options: FrameOptions): string[] {
  const { style } = options;
  const width = Math.min(options.columns, MAX_WIDTH);
  const room = options.rows - 1;
  const head = [...headLines(state, options, width), barLine(state, options, width)];
  const tiles = tileLines(tilesOf(state), width, style.dim, style.bold);
  const foot = footLines(state, options, width);
  if (room < head.length + tiles.length + 1) return [...head.slice(-1), ...tiles].slice(0, room);
  const spare = room - head.length - tiles.length - foot.length - 2;
  const curve = spare > MIN_CURVE_ROWS ? curveLines(state, options, width, Math.min(spare, MAX_CURVE_ROWS)) : [];
  const body = [...head, '', ...tiles, ...(curve.length > 0 ? ['', ...curve] : [])];
  return [...body, ...foot].slice(0, room);
}

function headLines(state: LiveState, { style, title, unicode }: FrameOptions, width: number): string[] {
  const { plan, start } = state;
  const facts = [
    ...(plan ? [`${formatCount(plan.parameters)} parameters`, `${formatCount(plan.tokens)} tokens`] : []),
    ...(start ? [start.device] : []),
  ];
  const separator = unicode ? ' · ' : ' - ';
  const line = printable(facts.join(separator), { oneLine: true, unicode });
  return flow([style.bold(printable(title, { oneLine: true, unicode })), style.dim(line)], width).slice(0, 2);
}

function barLine(state: LiveState, options: FrameOptions, width: number): string {
  const { step, plan, end, eta } = state;
  const fraction = state.fraction ?? 0;
  const percent = `${pad(String(Math.floor(fraction * 100)), 3, 'right')}%`;
  const count = `step ${formatInteger(step?.step ?? 0)}${plan ? `/${formatInteger(plan.steps)}` : ''}`;
  const time = end
    ? `${end.status} in ${formatDuration(end.elapsed)}`
    : step && fraction >= 1
      ? `${formatDuration(step.elapsed)}, saving and evaluating`
      : step
        ? `${formatDuration(step.elapsed)}, ETA ${eta === undefined ? '?' : formatDuration(eta)}`
        : 'starting';
  const text = `${percent}  ${count}  ${time}`;
  const room = Math.min(60, width - text.length - 2);
  return room >= 8 ? `${drawBar(fraction, room, options)}  ${text}` : text;
}

interface Tile {
  label: string;
  value: string;
  /** The widest value expected, so that columns do not jump when a number gains a digit. */
  width: number;
}

function tilesOf({ step, smoothedLoss, evaluation }: LiveState): Tile[] {
  const tile = (label: string, value: string | undefined, width: number): Tile => ({
    label,
    value: value ?? '-',
    width,
  });
  return [
    tile('loss', step && formatLoss(step.loss), 7),
    tile('smooth', formatLoss(smoothedLoss), 7),
    tile('held-out', formatLoss(evaluation?.loss), 7),
    tile('bits/byte', formatLoss(evaluation?.bitsPerByte), 7),
    tile('tok/s', step && formatCount(step.tokensPerSecond), 6),
    tile('MFU', formatPercent(step?.mfu), 6),
    tile('ms/step', step && formatMs(step.msPerStep), 6),
    tile('grad', step && formatNorm(step.gradNorm), 6),
    tile('lr', step && formatRate(step.lr), 7),
  ];
}

/** Labels over values; tiles that do not fit beside the others go into further pairs of lines. */
function tileLines(
  tiles: readonly Tile[],
  width: number,
  paintLabel: (text: string) => string,
  paintValue: (text: string) => string,
): string[] {
  const lines: string[] = [];
  let labels = '';
  let values = '';
  const flush = () => {
    if (labels !== '') lines.push(paintLabel(labels.trimEnd()), paintValue(values.trimEnd()));
    labels = values = '';
  };
  for (const { label, value, width: expected } of tiles) {
    const cells = Math.max(displayWidth(label), displayWidth(value), expected);
    if (labels !== '' && displayWidth(labels) + cells > width) flush();
    labels += `${pad(label, cells)}  `;
    values += `${pad(value, cells)}  `;
  }
  flush();
  return lines;
}

function curveLines(state: LiveState, options: FrameOptions, width: number, room: number): string[] {
  const { style, unicode } = options;
  const raw = state.loss.points;
  const smooth = state.smooth.points;
  if (raw.length < 2) return [];
  const series: Series[] = [
    // Without colours the cloud of single steps would hide the line.
    ...(style.enabled ? [{ points: raw, kind: 'dots' as const, paint: style.dim }] : []),
    { points: smooth, kind: 'line', paint: style.cyan },
    { points: state.heldOut, kind: 'marks', paint: style.yellow },
  ];
  const last = Math.max(raw.at(-1)!.x, state.heldOut.at(-1)?.x ?? 0);
  const first = Math.min(raw[0].x, state.heldOut[0]?.x ?? raw[0].x);
  const plot = drawCurve({
    series,
    width,
    height: room - 1,
    unicode,
    xName: 'steps',
    xRange: [first, last],
    yRange: lossRange(smooth, state.heldOut, room - 3),
    paintAxes: style.dim,
  });
  if (plot.length === 0) return [];
  const [line, mark, dot] = unicode ? ['━', '◆', '·'] : [':', 'o', '.'];
  const legend = [
    style.dim('loss:'),
    `${style.cyan(line)} smoothed`,
    ...(style.enabled ? [`${style.dim(dot)} each step`] : []),
    ...(state.heldOut.length > 0 ? [`${style.yellow(mark)} held-out`] : []),
  ];
  return [...flow([legend.join('  ')], width), ...plot];
}

function footLines(state: LiveState, { style, footer, unicode }: FrameOptions, width: number): string[] {
  const { checkpoint, evaluation, end, skipped } = state;
  const baselines = Object.entries(evaluation?.baselines ?? {}).map(([name, value]) => `${name} ${value.toFixed(3)}`);
  const pieces = [
    ...(baselines.length > 0 ? [`held-out bits/byte: ${baselines.join(', ')}`] : []),
    ...(skipped > 0 ? [`${formatInteger(skipped)} non-finite ${skipped === 1 ? 'step' : 'steps'} skipped`] : []),
    ...(checkpoint ? [`checkpoint at step ${formatInteger(checkpoint.step)}`] : []),
    ...(footer && !end ? [footer] : []),
  ].map((piece) => style.dim(printable(piece, { oneLine: true, unicode })));
  return flow(pieces, width);
}

export function formatMs(ms: number): string {
  return ms >= 100 ? ms.toFixed(0) : ms.toFixed(1);
}

export function formatNorm(norm: number): string {
  if (!Number.isFinite(norm)) return String(norm);
  return norm >= 1000 || (norm < 0.001 && norm > 0) ? norm.toExponential(1) : norm.toFixed(3);
}
