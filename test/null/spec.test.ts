// Specs: defaults, and one clear line for each impossible one.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { AnsatzError } from '../../src/backend/errors.ts';
import { buildModel } from '../../src/model/model.ts';
import { parseSpec } from '../../src/model/spec.ts';
import { declared } from '../../src/nn/index.ts';
import { parseTrainConfig } from '../../src/train/config.ts';
import { smallSpec } from '../support/small-models.ts';

type Changes = Record<string, unknown>;

/** The message of the AnsatzError that fn throws; fails when it throws none, or one of several lines. */
function refusal(fn: () => unknown): string {
  try {
    fn();
  } catch (error) {
    assert.ok(error instanceof AnsatzError, `not an AnsatzError: ${String(error)}`);
    assert.ok(!error.message.includes('\n') && error.message.length < 300, error.message);
    return error.message;
  }
  assert.fail('was accepted');
}

const attention = (options: Changes) => ({ attention: { kind: 'full', heads: 2, ...options } });
const ffn = (options: Changes) => ({ ffn: { kind: 'glu', hidden: 10, ...options } });

describe('impossible model specs', () => {
  const cases: [string, Changes, RegExp][] = [
    ['heads that do not divide the width', attention({ heads: 5 }), /5 heads do not divide width 12/],
    [
      'kvHeads that do not divide heads',
      attention({ heads: 6, kvHeads: 4 }),
      /6 query heads do not share 4 key heads evenly/,
    ],
    ['more kvHeads than heads', attention({ heads: 2, kvHeads: 4 }), /2 query heads do not share 4 key heads/],
    ['no heads', attention({ heads: 0 }), /attention\.heads: .*>0/],
    ['half a head', attention({ heads: 1.5 }), /attention\.heads: .*int/],
    ['negative window', attention({ window: -1 }), /attention\.window: .*>=0/],
    ['head width 0', attention({ headWidth: 0 }), /attention\.headWidth: .*>0/],
    ['attention without heads', { attention: 'full' }, /attention\.heads: .*number/],
    ['unknown attention', { attention: 'quadratic' }, /unknown attention 'quadratic': choose from full/],
    ['unknown ffn', { ffn: { kind: 'mlp2', hidden: 3 } }, /unknown ffn 'mlp2': choose from .*mlp.*glu/],
    ['unknown norm', { norm: 'batch' }, /unknown norm 'batch': choose from rms, layer/],
    ['unknown positions', { positions: 'absolute' }, /unknown positions 'absolute': choose from rope, learned, none/],
    ['unknown layout', { layout: 'spiral' }, /unknown layout 'spiral': choose from .*decoder/],
    ['unknown activation', ffn({ activation: 'swish' }), /ffn\.activation: .*silu/],
    ['no hidden units', ffn({ hidden: 0 }), /ffn\.hidden: .*>0/],
    ['ffn without hidden', { ffn: 'mlp' }, /ffn\.hidden: .*number/],
    ['a typo in a field', { widht: 12 }, /widht/],
    ['a typo in an option', attention({ kvheads: 2 }), /attention: .*kvheads/],
    ['an option of another kind', { positions: { kind: 'learned', theta: 1e4 } }, /positions: .*theta/],
    ['width 0', { width: 0 }, /width: .*>0/],
    ['depth 0', { depth: 0 }, /depth: .*>0/],
    ['vocabulary 0', { vocab: 0 }, /vocab: .*>0/],
    ['context 0', { context: 0 }, /context: .*>0/],
    ['negative width', { width: -12 }, /width: .*>0/],
    ['width as text', { width: '12' }, /width: .*number/],
    ['width missing', { width: undefined }, /width: .*number/],
    ['width not finite', { width: Number.POSITIVE_INFINITY }, /width: /],
    ['dropout 1', { dropout: 1 }, /dropout: .*<1/],
    ['negative z-loss', { zLoss: -1 }, /zLoss: .*>=0/],
    ['rope on odd heads', attention({ heads: 4 }), /rope: .*3/],
    ['rope on heads of 1', attention({ heads: 12 }), /rope: .*1/],
    ['rope that turns nothing', { positions: { kind: 'rope', fraction: 0.1 } }, /rope: .*no pair/],
    ['rope fraction above 1', { positions: { kind: 'rope', fraction: 1.5 } }, /positions\.fraction: .*<=1/],
    ['slot as a number', { norm: 3 }, /norm: /],
  ];
  for (const [name, changes, message] of cases)
    test(name, () =>
      assert.match(
        refusal(() => buildModel({ ...smallSpec(), ...changes } as never)),
        message,
      ),
    );

  test('every wrong field is named', () => {
    const message = refusal(() => parseSpec({ ...smallSpec(), width: 0, depth: -1, norm: 'x' }));
    for (const field of ['width', 'depth', 'norm']) assert.match(message, new RegExp(field));
  });

  test('what is no spec at all', () => {
    for (const input of [null, undefined, 3, 'tiny', []])
      assert.match(
        refusal(() => parseSpec(input)),
        /model spec: /,
      );
  });
});

describe('impossible run configs', () => {
  const config = (changes: Changes) => ({ model: smallSpec(), data: { folder: 'x' }, steps: 10, ...changes });
  const cases: [string, Changes, RegExp][] = [
    ['steps 0', { steps: 0 }, /steps: .*>0/],
    ['rows longer than the context', { length: 17 }, /rows of 17 tokens, the model's context is 16/],
    ['batch 0', { batch: 0 }, /batch: .*>0/],
    ['unknown precision', { precision: 'fp8' }, /precision: .*bf16/],
    ['unknown optimiser', { optimiser: { kind: 'sgd' } }, /optimiser/],
    ['unknown schedule', { schedule: { kind: 'linear' } }, /schedule/],
    ['negative learning rate', { optimiser: { kind: 'adamw', lr: -1 } }, /optimiser\.lr: .*>0/],
    ['heads in the model', { model: { ...smallSpec(), ...attention({ heads: 5 }) } }, /5 heads do not divide width 12/],
    ['width in the model', { model: { ...smallSpec(), width: 0 } }, /model\.width: .*>0/],
    ['a typo', { acumulate: 2 }, /acumulate/],
  ];
  for (const [name, changes, message] of cases)
    test(name, () =>
      assert.match(
        refusal(() => parseTrainConfig(config(changes))),
        message,
      ),
    );
});

describe('possible specs', () => {
  test('what is left out gets the options of its kind', () => {
    const { norm, positions, tied, attention: a, ffn: f } = parseSpec(smallSpec());
    assert.deepEqual(norm, { kind: 'rms', eps: 1e-6, scale: true });
    assert.deepEqual(positions, { kind: 'rope', theta: 10000, fraction: 1, interleaved: false });
    assert.equal(tied, true);
    assert.deepEqual(a, { kind: 'full', heads: 2, window: 0, bias: false, dropout: 0 });
    assert.deepEqual(f, { kind: 'glu', hidden: 10, bias: false, dropout: 0, activation: 'silu' });
  });

  test('a name alone is a kind with its defaults', () => {
    assert.deepEqual(
      parseSpec(smallSpec({ norm: 'layer' })).norm,
      parseSpec(smallSpec({ norm: { kind: 'layer' } })).norm,
    );
  });

  test('a checked spec is a spec, and checks to itself', () => {
    const spec = parseSpec(smallSpec({ positions: { kind: 'rope', fraction: 0.5 }, norm: 'layer' }));
    assert.deepEqual(parseSpec(spec), spec);
    assert.deepEqual(parseSpec(JSON.parse(JSON.stringify(spec))), spec);
  });

  test('parameters have the names and shapes that the spec implies', () => {
    const spec = smallSpec({ tied: false, depth: 1, ...attention({ heads: 4, kvHeads: 2, headWidth: 6, bias: true }) });
    const shapes = Object.fromEntries(declared(buildModel(spec)).map((p) => [p.path, [...p.spec.shape]]));
    assert.deepEqual(shapes, {
      'embed.weight': [11, 12],
      'blocks.0.norm1.weight': [12],
      'blocks.0.attention.qkv': [(4 + 2 * 2) * 6, 12],
      'blocks.0.attention.out': [12, 4 * 6],
      'blocks.0.attention.qkvBias': [(4 + 2 * 2) * 6],
      'blocks.0.attention.outBias': [12],
      'blocks.0.norm2.weight': [12],
      'blocks.0.ffn.up': [20, 12],
      'blocks.0.ffn.down': [12, 10],
      'norm.weight': [12],
      'head.weight': [11, 12],
    });
  });
});
