/** What `ansatz tricks` does: the table of hypotheses, with costs taken from the same accounting that runs use. */
import { existsSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { AnsatzError } from '../../backend/errors.ts';
import { type Account, accountFor } from '../../train/account.ts';
import { parseTrainConfig, type TrainConfigInput } from '../../train/config.ts';
import { allTricks, applyPatch, type Trick, trick } from '../../tricks/index.ts';
import { formatCount } from '../term/format.ts';
import type { Output } from '../term/output.ts';
import { pairs, table } from '../term/table.ts';

interface Size {
  readonly width: number;
  readonly depth: number;
}

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..', '..');

/** The decoder that a trick is compared with: RMSNorm, RoPE, gated feed-forward of 2.5 widths, tied. */
export function baseConfig({ width, depth }: Size): TrainConfigInput {
  const heads = Math.max(1, Math.round(width / 64));
  if (width % heads)
    throw new AnsatzError(`--width ${width} does not split into heads of about 64`, { hint: '--width 256' });
  return {
    model: {
      vocab: 4096,
      context: 256,
      width,
      depth,
      attention: { kind: 'full', heads },
      ffn: { kind: 'glu', hidden: Math.round(2.5 * width) },
      norm: 'rms',
      positions: 'rope',
    },
    data: { folder: 'not read' },
    steps: 1000,
  };
}

/** A trick's config over the base, and its cost as factors of the base's. */
function costOf(t: Trick, size: Size, base: Account) {
  if (!t.patch) return undefined;
  const config = baseConfig(size);
  const { width, depth } = size;
  const heads = (config.model as { attention: { heads: number } }).attention.heads;
  const hidden = (config.model as { ffn: { hidden: number } }).ffn.hidden;
  const patch = t.patch({ width, depth, context: 256, heads, hidden });
  try {
    const a = accountFor(parseTrainConfig(applyPatch(config, patch)));
    return {
      patch,
      parameters: a.parameters / base.parameters,
      flops: a.modelFlopsPerToken / base.modelFlopsPerToken,
      memory: a.memory.total / base.memory.total,
    };
  } catch (error) {
    if (!(error instanceof AnsatzError)) throw error;
    return { patch, refused: error.message };
  }
}
type TrickCost = ReturnType<typeof costOf>;

const factor = (x: number): string => `${x.toFixed(2)}x`;
const cells = (c: TrickCost): string[] =>
  !c ? ['', '', ''] : 'refused' in c ? ['refused', '', ''] : [factor(c.parameters), factor(c.flops), factor(c.memory)];

export async function runTricks(output: Output, name: string | undefined, size: Size): Promise<void> {
  const base = accountFor(parseTrainConfig(baseConfig(size)));
  if (name) return showOne(output, trick(name), size, base);
  const all = allTricks();
  const bar = output.progress({ label: 'accounting', total: all.length, unit: 'tricks', quiet: true });
  const rows = all.map((t, k) => {
    const cost = costOf(t, size, base);
    bar.update(k + 1);
    return { ...t, cost };
  });
  bar.finish();
  const columns = [
    { title: 'trick' },
    { title: 'confidence' },
    { title: 'tier' },
    { title: 'parameters', align: 'right' as const },
    { title: 'FLOP/token', align: 'right' as const },
    { title: 'memory', align: 'right' as const },
    { title: 'what it is' },
  ];
  output.result('tricks', { base: { ...size, parameters: base.parameters }, tricks: rows }, [
    ...table(
      columns,
      rows.map((t) => [t.name, t.confidence, t.tier, ...cells(t.cost), t.summary]),
    ),
    '',
    `costs against a decoder of width ${size.width} and depth ${size.depth} (${formatCount(base.parameters)} parameters); ansatz tricks NAME shows one`,
  ]);
}

function showOne(output: Output, t: Trick, size: Size, base: Account): void {
  const cost = costOf(t, size, base);
  const readme = join('src', 'tricks', t.name, 'README.md');
  const known = existsSync(join(root, readme)) ? readme : undefined;
  const costLine = (): string => {
    if (!cost) return 'not a change of the model';
    if ('refused' in cost) return `refused at this size: ${cost.refused}`;
    return `${factor(cost.parameters)} parameters, ${factor(cost.flops)} FLOP a token, ${factor(cost.memory)} memory`;
  };
  output.result('tricks', { ...t, cost, readme: known }, [
    output.style.bold(t.name),
    ...pairs([
      ['what', t.summary],
      ['hypothesis', t.hypothesis],
      ['confidence', `${t.confidence} (${t.tier})`],
      ['source', t.source],
      ['cost', `${costLine()}, against a decoder of width ${size.width} and depth ${size.depth}`],
      ...(cost ? [['switch on', JSON.stringify(cost.patch)] as [string, string]] : []),
      ...(known ? [['read', known] as [string, string]] : []),
    ]),
  ]);
}
