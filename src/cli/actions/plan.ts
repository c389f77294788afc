/** What `ansatz plan` does: the accounting of a config on the meta device, whatever its size. */
import { existsSync, readFileSync, statSync } from 'node:fs';
import { AnsatzError } from '../../backend/errors.ts';
import { type Account, accountFor } from '../../train/account.ts';
import { parseTrainConfig, type TrainConfigInput } from '../../train/config.ts';
import type { PlanFlags } from '../commands/plan.ts';
import { applySettings, configured, loadRecipe } from '../common.ts';
import { formatBytes, formatCount } from '../term/format.ts';
import { type Output, UsageError } from '../term/output.ts';
import { pairs } from '../term/table.ts';

export async function runPlan(output: Output, recipe: string | undefined, flags: PlanFlags): Promise<void> {
  if (!recipe === !flags.spec)
    throw new UsageError('what to plan: a recipe or --spec, one of the two', { hint: 'ansatz plan tiny' });
  const input = recipe ? await recipeConfig(recipe, flags) : specConfig(flags);
  const started = performance.now();
  const config = parseTrainConfig(input);
  const account = accountFor(config);
  const ms = performance.now() - started;
  const tokensPerStep = account.positionsPerStep;
  const { memory: m } = account;
  const roles = Object.entries(account.byRole).map(([role, n]) => `${formatCount(n)} ${role}`);
  output.result('plan', { name: recipe ?? 'spec', model: config.model, tokensPerStep, ...account, ms }, [
    output.style.bold(`plan of ${recipe ?? 'the spec'}`),
    ...pairs([
      ['parameters', `${formatCount(account.parameters)} (${roles.join(', ')})`],
      ...(account.activeParameters < account.parameters ? [['', activeLine(account)] as [string, string]] : []),
      [
        'compute',
        `${formatCount(account.forwardFlopsPerToken)} FLOP a token forward, ${formatCount(account.modelFlopsPerToken)} in training`,
      ],
      [
        'a step',
        `${formatCount(tokensPerStep)} tokens, ${formatCount(account.stepFlops)} FLOP in ${account.calls} kernel calls`,
      ],
      ['memory', `${formatBytes(m.total)} to train`],
      ['', `${formatBytes(m.parameters)} weights, ${formatBytes(m.optimiser)} optimiser`],
      ['', `${formatBytes(m.arena)} activations and gradients, ${formatBytes(m.other)} other`],
      ['planned in', `${ms.toFixed(0)} ms`],
    ]),
  ]);
}

const activeLine = (a: Account): string =>
  `${formatCount(a.activeParameters)} active in a token, ${formatCount(a.activeNonEmbedding)} of them not embeddings`;

async function recipeConfig(name: string, flags: PlanFlags): Promise<TrainConfigInput> {
  const recipe = await loadRecipe(name);
  const config = await configured(recipe, { data: 'not read', vocab: recipe.vocab }, flags.set);
  return flags.batch ? { ...config, batch: flags.batch } : config;
}

function specConfig(flags: PlanFlags): TrainConfigInput {
  const text = flags.spec!.trim().startsWith('{') ? flags.spec! : fileText(flags.spec!);
  let model: TrainConfigInput['model'];
  try {
    model = JSON.parse(text);
  } catch (cause) {
    throw new AnsatzError(`--spec is not JSON: ${(cause as Error).message}`, { hint: 'see docs/spec.md', cause });
  }
  const config: TrainConfigInput = { model, data: { folder: 'not read' }, steps: 1, batch: flags.batch ?? 1 };
  applySettings(config, flags.set);
  return config;
}

function fileText(path: string): string {
  if (!existsSync(path))
    throw new AnsatzError(`no spec file ${path}`, { hint: 'give a JSON file, or the JSON itself' });
  try {
    return readFileSync(path, 'utf8');
  } catch (cause) {
    const why = statSync(path).isDirectory() ? 'it is a folder' : (cause as NodeJS.ErrnoException).code;
    throw new AnsatzError(`${path}: cannot be read: ${why}`, { hint: 'give a JSON file, or the JSON itself', cause });
  }
}
