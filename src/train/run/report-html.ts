// report.html: one file without scripts or outside resources, readable offline and in ten years.
import type { RunReport } from './report.ts';
import { extent } from './series.ts';
import { lineChart } from './svg-chart.ts';
import {
  formatBytes,
  formatCount,
  formatDuration,
  formatInteger,
  formatLoss,
  formatPercent,
  formatRate,
} from './units.ts';

export function renderReport(report: RunReport): string {
  const { name, status, message, created, program, device } = report;
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escaped(name)} - training run</title>
<style>${STYLE}</style>
<main>
<header>
<h1>${escaped(name)} <span class="status ${escaped(status)}">${escaped(status)}</span></h1>
<p class="quiet">Ansatz ${escaped(program ?? '')} run, made ${escaped(created.slice(0, 16).replace('T', ' '))} UTC${device ? `, on ${escaped(device)}` : ''}</p>
${message ? `<p class="problem">${escaped(message)}</p>` : ''}
</header>
${factsOf(report)}
${lossSection(report)}
${compressionSection(report)}
${smallCharts(report)}
${samplesSection(report)}
${noticesSection(report)}
${checkpointsSection(report)}
${configSection(report)}
</main>
</html>
`;
}

function factsOf(report: RunReport): string {
  const { parameters, tokens, steps, seconds, heldOut, loss, tokensPerSecond, mfu } = report;
  const facts: [string, string | undefined][] = [
    ['held-out bits/byte', heldOut && formatLoss(heldOut.bitsPerByte)],
    ['held-out loss', heldOut && formatLoss(heldOut.loss)],
    ['training loss', loss === undefined ? undefined : formatLoss(loss)],
    ['parameters', parameters === undefined ? undefined : formatCount(parameters)],
    ['tokens', formatCount(tokens)],
    ['steps', formatInteger(steps)],
    ['time', formatDuration(seconds)],
    ['tokens/s', tokensPerSecond === undefined ? undefined : formatCount(tokensPerSecond)],
    ['utilisation', typeof mfu === 'number' ? formatPercent(mfu) : undefined],
  ];
  const items = facts.filter(([, value]) => value !== undefined);
  return `<dl class="facts">${items
    .map(([label, value]) => `<div><dt>${label}</dt><dd>${escaped(value!)}</dd></div>`)
    .join('')}</dl>`;
}

function lossSection({ curves }: RunReport): string {
  // The plunge from the initial loss would flatten the rest: the top is the curve's 96th percentile, or a held-out
  // point above it.
  const values = curves.smoothedLoss.map(({ y }) => y).sort((a, b) => a - b);
  if (values.length < 2) return '<section><p class="quiet">No steps were recorded.</p></section>';
  const top = values[Math.floor((values.length - 1) * (values.length >= 50 ? 0.96 : 1))];
  const low = Math.min(values[0], ...curves.loss.slice(curves.loss.length >> 1).map(({ y }) => y));
  const yRange = extent([low, top, ...curves.heldOutLoss.map(({ y }) => y)].filter(Number.isFinite));
  const chart = lineChart({
    title: 'Loss',
    width: 860,
    height: 340,
    yRange,
    series: [
      { points: curves.loss, className: 'raw', kind: 'line' },
      { points: curves.smoothedLoss, className: 'line', kind: 'line' },
      { points: curves.heldOutLoss, className: 'mark', kind: 'marks' },
    ],
  });
  const legend =
    '<span class="key line"></span>training, smoothed <span class="key raw"></span>each step' +
    (curves.heldOutLoss.length > 0 ? ' <span class="key mark"></span>held-out' : '');
  return `<section><h2>Loss <small>nats per token, by step</small></h2><p class="legend">${legend}</p>${chart}</section>`;
}

function compressionSection({ heldOut }: RunReport): string {
  if (!heldOut || Object.keys(heldOut.baselines).length === 0) return '';
  const bars: [string, number, string][] = [
    ['this model', heldOut.bitsPerByte, 'ours'],
    ...Object.entries(heldOut.baselines).map(([name, value]): [string, number, string] => [name, value, 'theirs']),
  ];
  const largest = Math.max(...bars.map(([, value]) => value));
  const rows = bars.map(
    ([name, value, className]) =>
      `<tr><th>${escaped(name)}</th><td class="number">${formatLoss(value)}</td>` +
      `<td class="wide"><div class="bar ${className}" style="width:${((100 * value) / largest).toFixed(1)}%"></div></td></tr>`,
  );
  return (
    `<section><h2>Held-out text <small>bits per byte at step ${formatInteger(heldOut.step)}, lower is better</small></h2>` +
    `<table class="bars">${rows.join('')}</table></section>`
  );
}

function smallCharts({ curves }: RunReport): string {
  const small = { width: 290, height: 140 };
  const charts: [string, string][] = [
    ['Gradient norm', chartOf('Gradient norm', curves.gradNorm)],
    ['Learning rate', chartOf('Learning rate', curves.lr, formatRate)],
    ['Tokens per second', chartOf('Tokens per second', curves.tokensPerSecond, formatCount)],
  ];
  function chartOf(title: string, points: RunReport['curves']['lr'], yLabel?: (value: number) => string): string {
    return lineChart({ title, ...small, yLabel, series: [{ points, className: 'thin', kind: 'line' }] });
  }
  const drawn = charts.filter(([, chart]) => chart !== '');
  if (drawn.length === 0) return '';
  return `<section class="small">${drawn.map(([title, chart]) => `<figure><h3>${title}</h3>${chart}</figure>`).join('')}</section>`;
}

function samplesSection({ samples }: RunReport): string {
  if (samples.length === 0) return '';
  const blocks = samples.map(
    ({ step, prompt, completion }) =>
      `<figure><figcaption>step ${formatInteger(step)}</figcaption>` +
      `<pre><span class="prompt">${escaped(prompt)}</span>${escaped(completion)}</pre></figure>`,
  );
  return `<section><h2>Samples <small>the prompt is grey</small></h2>${blocks.join('')}</section>`;
}

function noticesSection({ warnings, fallbacks, skippedSteps, resumedFrom }: RunReport): string {
  const items = [
    ...fallbacks.map(({ op, wanted, used, why }) => `${op} ran ${used} instead of ${wanted}: ${why}`),
    ...(skippedSteps > 0
      ? [`${formatInteger(skippedSteps)} non-finite ${skippedSteps === 1 ? 'step was' : 'steps were'} skipped`]
      : []),
    ...resumedFrom.map((step) => `resumed from step ${formatInteger(step)}`),
    ...warnings,
  ];
  if (items.length === 0) return '';
  return `<section><h2>Notices</h2><ul>${items.map((item) => `<li>${escaped(item)}</li>`).join('')}</ul></section>`;
}

function checkpointsSection({ checkpoints }: RunReport): string {
  if (checkpoints.length === 0) return '';
  const rows = checkpoints
    .slice(-5)
    .map(
      ({ step, path, bytes }) =>
        `<tr><td class="number">${formatInteger(step)}</td><td class="number">${formatBytes(bytes)}</td><td><code>${escaped(path)}</code></td></tr>`,
    );
  return `<section><h2>Checkpoints <small>the last ${rows.length}</small></h2><table class="narrow">${rows.join('')}</table></section>`;
}

function configSection({ config, configHash, seed }: RunReport): string {
  const rows = flatten(config).map(
    ([path, value]) => `<tr><th><code>${escaped(path)}</code></th><td><code>${escaped(value)}</code></td></tr>`,
  );
  return (
    `<section><h2>Config</h2><p class="quiet">sha256 <code>${escaped(configHash)}</code>` +
    `${seed === undefined ? '' : `, seed ${seed}`}</p><table>${rows.join('')}</table></section>`
  );
}

function flatten(value: unknown, path = ''): [string, string][] {
  if (typeof value === 'object' && value !== null && !Array.isArray(value) && Object.keys(value).length > 0) {
    return Object.entries(value).flatMap(([key, inner]) => flatten(inner, path === '' ? key : `${path}.${key}`));
  }
  return path === '' ? [] : [[path, typeof value === 'string' ? value : JSON.stringify(value)]];
}

function escaped(text: string): string {
  const entities: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' };
  return text.replace(/[&<>"']|(?![\n\t])\p{Cc}/gu, (character) => entities[character] ?? visible(character));
}

/** Control characters have no place in HTML; their pictures (Unicode 2400-2421) do. */
function visible(control: string): string {
  const code = control.charCodeAt(0);
  return code < 0x20 ? String.fromCharCode(0x2400 + code) : '\ufffd';
}

const STYLE = `
:root{--paper:#fff;--ink:#1c2330;--quiet:#667085;--faint:#c3cbd8;--grid:#e6eaf0;--line:#2563c9;--mark:#c2410c;--soft:#f5f7fa;--good:#15803d}
@media (prefers-color-scheme:dark){:root{--paper:#12161d;--ink:#e6eaf0;--quiet:#93a0b4;--faint:#46536a;--grid:#242c39;--line:#6aa5ff;--mark:#fb923c;--soft:#1a202b;--good:#4ade80}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:900px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:26px;margin:0}h2{font-size:17px;margin:36px 0 10px}h3{font-size:14px;margin:0 0 4px;font-weight:600}
small,.quiet,.legend,figcaption{color:var(--quiet);font-weight:400;font-size:13px}
p{margin:4px 0;overflow-wrap:anywhere}
.status{font-size:13px;font-weight:600;padding:2px 10px;border-radius:10px;background:var(--soft);color:var(--quiet);vertical-align:4px}
.status.completed{color:var(--good)}.status.failed,.problem{color:#dc2626}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:10px;margin:20px 0 0}
.facts div{background:var(--soft);border-radius:8px;padding:10px 14px}
dt{color:var(--quiet);font-size:13px}dd{margin:0;font-size:18px;font-weight:600;font-variant-numeric:tabular-nums}
svg{width:100%;height:auto;display:block}svg text{fill:var(--quiet);font-size:12px}
.grid{stroke:var(--grid)}polyline{fill:none;stroke-linejoin:round}
polyline.line{stroke:var(--line);stroke-width:2}polyline.thin{stroke:var(--line);stroke-width:1}polyline.raw{stroke:var(--faint);stroke-width:1}
circle.mark{fill:var(--mark);stroke:var(--paper);stroke-width:1.5}
.key{display:inline-block;width:18px;height:3px;margin:0 6px 3px 14px;background:var(--line)}.key.raw{background:var(--faint)}
.key:first-child{margin-left:0}.key.mark{width:9px;height:9px;border-radius:5px;background:var(--mark);margin-bottom:0}
.small{display:grid;grid-template-columns:repeat(auto-fill,minmax(270px,1fr));gap:20px;margin-top:32px}figure{margin:0 0 14px}
table{border-collapse:collapse;width:100%;font-size:14px}th{text-align:left;font-weight:400}
th,td{padding:4px 14px 4px 0;border-bottom:1px solid var(--grid);vertical-align:top;overflow-wrap:anywhere}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}.bars th,.bars td{border:0;white-space:nowrap}
.narrow{width:auto}.wide{width:80%}.bar{height:14px;border-radius:3px;margin-top:4px;background:var(--faint)}.bar.ours{background:var(--line)}
pre{background:var(--soft);border-radius:8px;padding:12px 14px;margin:4px 0;white-space:pre-wrap;overflow-wrap:anywhere;font-size:13px}
.prompt{color:var(--quiet)}code{font-size:13px}
`;
