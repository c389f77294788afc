/** Every recipe is a valid config that can be accounted for; the stacked preset holds at any size. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { configured, loadRecipe, recipeNames } from '../../src/cli/common.ts';
import { accountFor } from '../../src/train/account.ts';
import { parseTrainConfig } from '../../src/train/config.ts';

const account = async (name: string, settings: string[] = []) => {
  const recipe = await loadRecipe(name);
  return accountFor(parseTrainConfig(await configured(recipe, { data: 'not read', vocab: recipe.vocab }, settings)));
};

for (const name of recipeNames())
  test(`recipe ${name}`, async () => {
    const { parameters, modelFlopsPerToken, memory } = await account(name);
    assert.ok(parameters > 1e6 && modelFlopsPerToken > parameters / 4 && memory.total > 12 * parameters, name);
  });

test('the stacked preset, from one million parameters to more than a trillion', async () => {
  const size = (width: number, heads: number, hidden: number, experts: number, depth: number): string[] => [
    `model.width=${width}`,
    `model.depth=${depth}`,
    `model.layout.encoderDepth=${depth}`,
    `model.attention.heads=${heads}`,
    `model.layout.encoderAttention.heads=${heads}`,
    `model.ffn.expert.hidden=${hidden}`,
    `model.ffn.experts=${experts}`,
    'batch=1',
  ];
  const small = await account('ansatz', [...size(64, 2, 128, 4, 3), 'model.vocab=1024']);
  const large = await account('ansatz', [
    ...size(9216, 96, 65536, 32, 36),
    'model.context=2048',
    'objective.budget=512',
  ]);
  assert.ok(small.parameters > 0.3e6 && small.parameters < 2e6, `${small.parameters}`);
  assert.ok(large.parameters > 1e12, `${large.parameters}`);
  // Sparse twice over: of the parameters only a few take part in a token.
  assert.ok(large.forwardFlopsPerToken < 0.2 * 2 * large.parameters);
});
