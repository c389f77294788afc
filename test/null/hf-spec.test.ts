// What other formats can say of a spec, and what of their configs ours can: everything else is one line.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { AnsatzError } from '../../src/backend/errors.ts';
import { type DecoderFacts, factsOf } from '../../src/infer/formats/facts.ts';
import { huggingFaceConfig } from '../../src/infer/formats/hf-config.ts';
import { importedSpec } from '../../src/infer/formats/hf-spec.ts';
import { ggufDecoder, huggingFaceDecoder } from '../../src/infer/formats/tensors.ts';
import { buildModel } from '../../src/model/model.ts';
import { type ModelSpecInput, parseSpec } from '../../src/model/spec.ts';
import { declared } from '../../src/nn/index.ts';
import '../../src/tricks/index.ts';

const dense: ModelSpecInput = {
  ...{ vocab: 40, context: 64, width: 32, depth: 2 },
  attention: { kind: 'full', heads: 4, kvHeads: 2 },
  ffn: { kind: 'glu', hidden: 48 },
};
const experts = { kind: 'moe', experts: 4, active: 2, expert: { kind: 'glu', hidden: 32 } };
const stacks: ModelSpecInput = {
  ...dense,
  layout: { kind: 'encoder-decoder', encoderDepth: 3 },
  tied: false,
  attention: { kind: 'full', heads: 4 },
  positions: { kind: 't5-bias' },
};

const oneLine = (error: unknown, message: RegExp): true => {
  assert.ok(error instanceof AnsatzError, String(error));
  assert.match(error.message, message);
  assert.ok(error.hint && !/\n/.test(error.message + error.hint), `${error.message} | ${error.hint}`);
  return true;
};

describe('specs that cannot be said: the field, why, and what to change', () => {
  const cases: [string, ModelSpecInput, RegExp][] = [
    ['window with biases', { ...dense, attention: { kind: 'full', heads: 4, window: 8, bias: true } }, /window 8/],
    ['norms of other epsilons', { ...dense, attention: { kind: 'full', heads: 4, qkNorm: 1e-4 } }, /qkNorm 0\.0001/],
    [
      'experts and normalised queries',
      { ...dense, ffn: experts, attention: { kind: 'full', heads: 4, qkNorm: 1e-6 } },
      /qkNorm/,
    ],
    ['t5, window', { ...stacks, attention: { kind: 'full', heads: 4, window: 8 } }, /attention\.window 8/],
    ['t5, normalised queries', { ...stacks, attention: { kind: 'full', heads: 4, qkNorm: 1e-6 } }, /attention\.qkNorm/],
    [
      'attention kind',
      { ...dense, attention: { kind: 'blockwise', heads: 4, block: 8 } },
      /attention\.kind 'blockwise'/,
    ],
    ['norm', { ...dense, norm: 'layer' as never }, /model\.norm 'layer'/],
    ['positions', { ...dense, positions: 'alibi' as never }, /model\.positions 'alibi'/],
    ['part of a head', { ...dense, positions: { kind: 'rope', fraction: 0.5 } }, /positions\.fraction 0\.5/],
    ['ffn', { ...dense, ffn: { kind: 'mlp', hidden: 8 } }, /model\.ffn\.kind 'mlp'/],
    ['head', { ...dense, head: { kind: 'factored' } as never }, /model\.head 'factored'/],
    ['overrides', { ...dense, overrides: [{ layers: [1], ffn: { kind: 'glu', hidden: 8 } }] }, /overrides: block 1/],
    ['shared experts', { ...dense, ffn: { ...experts, shared: 1 } }, /model\.ffn\.shared 1/],
    ['gates', { ...dense, ffn: { ...experts, gate: 'softmax' } }, /model\.ffn\.gate 'softmax'/],
    ['one expert', { ...dense, ffn: { ...experts, active: 1 } }, /model\.ffn\.gate 'softmax'/],
    ['balancing bias', { ...dense, ffn: { ...experts, biasRate: 0.001 } }, /biasRate/],
    ['capacity', { ...dense, ffn: { ...experts, routing: { kind: 'capacity', convention: 'tokens' } } }, /capacity/],
    ['groups', { ...dense, ffn: { ...experts, groups: 2, keepGroups: 1 } }, /model\.ffn\.groups 2/],
    ['expert kind', { ...dense, ffn: { ...experts, expert: { kind: 'mlp', hidden: 8 } } }, /expert 'mlp'/],
    [
      'mixture with biases',
      { ...dense, ffn: experts, attention: { kind: 'full', heads: 4, bias: true } },
      /attention\.bias/,
    ],
    ['t5 with rope', { ...stacks, positions: 'rope' as never }, /model\.positions 'rope'/],
    ['t5, decoder both ways', { ...stacks, positions: { kind: 't5-bias', bidirectional: true } }, /bidirectional true/],
    ['t5, groups', { ...stacks, attention: { kind: 'full', heads: 4, kvHeads: 2 } }, /attention\.kvHeads/],
    ['t5, merged', { ...stacks, layout: { kind: 'encoder-decoder', merged: true } }, /layout\.merged/],
    ['t5, some blocks', { ...stacks, layout: { kind: 'encoder-decoder', crossEvery: 2 } }, /layout\.crossEvery/],
    [
      't5, other encoder layers',
      { ...stacks, layout: { kind: 'encoder-decoder', encoderFfn: { kind: 'glu', hidden: 8 } } },
      /layout\.encoderFfn/,
    ],
  ];
  for (const [name, spec, message] of cases)
    test(name, () => {
      assert.throws(
        () => factsOf(parseSpec(spec)),
        (e) => oneLine(e, message) && /cannot be exported/.test((e as Error).message),
      );
    });

  test('capacity that drops nothing when it is used is as good as none', () => {
    const ffn = { ...experts, routing: { kind: 'capacity', convention: 'tokens', evalFactor: 0 } };
    assert.ok((factsOf(parseSpec({ ...dense, ffn })) as DecoderFacts).moe);
  });
});

describe('every parameter is written once', () => {
  const cover = (spec: ModelSpecInput, tensors: ReturnType<typeof ggufDecoder>): void => {
    const seen = new Map<string, Uint8Array>();
    for (const { path, spec: p } of declared(buildModel(spec)))
      if (p.trainable !== false) seen.set(path, new Uint8Array(p.shape.reduce((a, b) => a * b, 1)));
    for (const { blocks } of tensors)
      for (const b of blocks) {
        const counts = seen.get(b.ours)!;
        for (let k = b.from; k < b.from + b.rows * b.cols; k++) counts[k]++;
      }
    for (const [path, counts] of seen)
      assert.ok(
        counts.every((n) => n === 1),
        path,
      );
  };
  for (const [name, changes] of Object.entries({
    dense: {},
    biases: {
      attention: { kind: 'full', heads: 4, bias: true },
      ffn: { kind: 'glu', hidden: 24, bias: true },
      tied: false,
    },
    'normalised queries': { attention: { kind: 'full', heads: 4, qkNorm: 1e-6 } },
    experts: { ffn: experts },
  }))
    test(name, () => {
      const spec = { ...dense, ...changes } as ModelSpecInput;
      const facts = factsOf(parseSpec(spec)) as DecoderFacts;
      cover(spec, huggingFaceDecoder(facts));
      cover(spec, ggufDecoder(facts));
    });
});

const llama = {
  architectures: ['LlamaForCausalLM'],
  ...{ vocab_size: 40, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4 },
  ...{ max_position_embeddings: 256, rms_norm_eps: 1e-5 },
};
const spec = (changes: object, context?: number) =>
  importedSpec({ ...llama, ...changes }, 'config.json', { most: 1000, context }).spec;

describe('configs', () => {
  test('a spec goes to a config and comes back', () => {
    const variants: ModelSpecInput[] = [
      dense,
      { ...dense, tied: false, attention: { kind: 'full', heads: 4, headWidth: 16, bias: true } },
      { ...dense, attention: { kind: 'full', heads: 4, qkNorm: 1e-6 } },
      { ...dense, attention: { kind: 'full', heads: 4, kvHeads: 2, window: 8 } },
      { ...dense, positions: { kind: 'rope-scaled', method: 'yarn', factor: 4, trained: 16, theta: 5000 } },
      {
        ...dense,
        positions: { kind: 'rope-scaled', method: 'llama3', factor: 8, trained: 16, betaFast: 4, betaSlow: 1 },
      },
      { ...dense, ffn: { ...experts, gate: 'renormalised', gateScale: 1, balanceLoss: 0, routerZLoss: 0 } },
      { ...stacks, layout: { kind: 'encoder-decoder', encoderDepth: 3, encoderPositions: { kind: 't5-bias' } } },
    ];
    for (const input of variants) {
      const facts = factsOf(parseSpec(input));
      const back = importedSpec(huggingFaceConfig(facts, 'f32', { bos: 0, eos: 0 }), 'c', { most: 1000 }).spec;
      assert.deepEqual(factsOf(back), facts);
      assert.equal(back.context, 64);
    }
  });

  test('defaults of each architecture', () => {
    const a = spec({});
    assert.deepEqual([a.tied, a.positions.theta, a.attention.kvHeads, a.attention.bias], [false, 10000, 4, false]);
    assert.equal(spec({ architectures: ['Qwen2ForCausalLM'] }).attention.bias, true);
    const qwen = spec({ architectures: ['Qwen3ForCausalLM'], sliding_window: 8, mlp_bias: true }).attention;
    assert.deepEqual([qwen.qkNorm, qwen.headWidth, qwen.bias, qwen.window], [1e-5, 128, false, 0]);
    const mistral = { architectures: ['MistralForCausalLM'] };
    assert.equal(spec({ ...mistral, sliding_window: 64 }).attention.window, 64);
    assert.equal(spec({ ...mistral, sliding_window: null }).attention.window, 0);
    assert.equal(spec({ ...mistral, sliding_window: 4096 }).attention.window, 0, 'longer than any sequence');
    assert.equal(spec({ ...mistral, max_position_embeddings: 8192 }).attention.window, 4096);
    const shorter = importedSpec({ ...llama, ...mistral, max_position_embeddings: 8192 }, 'c', {
      most: 99,
      context: 4096,
    });
    assert.equal(shorter.spec.attention.window, 0, 'longer than any sequence that is wanted');
    const mixtral = spec({ architectures: ['MixtralForCausalLM'], num_local_experts: 4 });
    assert.deepEqual([mixtral.ffn.kind, mixtral.ffn.active, mixtral.positions.theta], ['moe', 2, 1e6]);
    assert.equal(spec({}, 128).context, 128);
  });

  test('rope_parameters of newer files', () => {
    const p = spec({ rope_parameters: { rope_type: 'linear', factor: 2, rope_theta: 777 } }).positions;
    assert.deepEqual([p.kind, p.method, p.factor, p.theta], ['rope-scaled', 'linear', 2, 777]);
    assert.deepEqual(spec({ rope_parameters: { rope_type: 'default', rope_theta: 777 } }).positions.theta, 777);
  });

  const refused: [string, object, RegExp][] = [
    ['no architecture', { architectures: undefined }, /architecture missing is not known/],
    ['another architecture', { architectures: ['GPT2LMHeadModel'] }, /"GPT2LMHeadModel" is not known/],
    ['quantised', { quantization_config: { bits: 4 } }, /quantised/],
    ['no width', { hidden_size: undefined }, /hidden_size is missing/],
    ['absurd width', { hidden_size: 1e12 }, /hidden_size is 1000000000000/],
    ['a fraction', { num_attention_heads: 1.5 }, /num_attention_heads is 1\.5/],
    [
      'more layers than tensors',
      { num_hidden_layers: 5000 },
      /num_hidden_layers is 5000, the weights are 1000 tensors/,
    ],
    ['heads', { num_attention_heads: 5 }, /5 heads do not divide/],
    ['activation', { hidden_act: 'mish' }, /hidden_act is "mish"/],
    ['scaling', { rope_scaling: { rope_type: 'dynamic', factor: 2 } }, /"dynamic" is not known/],
    [
      'scaling of another kind',
      { rope_scaling: { rope_type: 'longrope', short_factor: [1] } },
      /"longrope" is not known/,
    ],
    ['scaling without a factor', { rope_scaling: { type: 'linear' } }, /factor is null/],
    [
      'yarn of two minds',
      { rope_scaling: { rope_type: 'yarn', factor: 2, original_max_position_embeddings: 64 } },
      /readers disagree/,
    ],
    ['magnitude', { rope_scaling: { rope_type: 'yarn', factor: 2, attention_factor: 1 } }, /attention_factor is 1/],
    ['mscale', { rope_scaling: { rope_type: 'yarn', factor: 2, mscale: 1 } }, /mscale/],
    ['part of a head', { partial_rotary_factor: 0.5 }, /partial_rotary_factor/],
    ['layers that differ', { layer_types: ['full_attention', 'sliding_attention'] }, /layer_types differ/],
    [
      'a window in some layers',
      { architectures: ['Qwen2ForCausalLM'], use_sliding_window: true, sliding_window: 8, max_window_layers: 1 },
      /max_window_layers/,
    ],
    [
      't5 activation',
      { architectures: ['T5ForConditionalGeneration'], num_layers: 2, num_heads: 4, feed_forward_proj: 'a-b' },
      /feed_forward_proj/,
    ],
  ];
  for (const [name, changes, message] of refused)
    test(`refused: ${name}`, () => {
      assert.throws(
        () => spec(changes),
        (e) => oneLine(e, message),
      );
    });
  test('refused: a context that is too long', () => {
    assert.throws(
      () => spec({}, 512),
      (e) => oneLine(e, /made for 256 tokens, not 512/),
    );
  });
});
