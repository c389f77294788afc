/** Calls in text: read as they come, held to their grammar from the word that begins them. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Automaton, callGrammar, DEAD } from '../../src/infer/grammar/index.ts';
import { CallReader, type CallSyntax, callText, HERMES, type Said } from '../../src/infer/text/calls.ts';

const bare: CallSyntax = {
  ...{
    trigger: '{"name": "',
    atStart: true,
    begin: '{"name": "',
    middle: '", "parameters": ',
    end: '}',
    between: null,
  },
};

/** What a reader says of a text that comes in pieces of `size`, joined. */
function read(syntax: CallSyntax, text: string, size: number): { content: string; calls: string[][] } {
  const reader = new CallReader(syntax);
  let content = '';
  const calls: string[][] = [];
  const note = (all: Said[]): void => {
    for (const said of all)
      if (said.kind === 'text') content += said.text;
      else if (said.kind === 'call') {
        assert.equal(said.index, calls.length);
        calls.push([said.name, '']);
      } else calls[said.index][1] += said.text;
  };
  for (let at = 0; at < text.length; at += size) note(reader.push(text.slice(at, at + size)));
  note(reader.end());
  assert.equal(reader.calls, calls.length);
  return { content, calls };
}

describe('reading', () => {
  const odd = '{"a": "}{\\"\\\\", "b": {"c": [{}, "</tool_call>"]}}';
  const [one, two] = [
    { name: 'f', arguments: odd },
    { name: 'g_2', arguments: '{}' },
  ].map((c) => callText(HERMES, c));
  const cases: [string, CallSyntax, string, string, string[][]][] = [
    ['text alone', HERMES, 'a < b <tool_cal and <tool_calx  ', 'a < b <tool_cal and <tool_calx  ', []],
    ['one call', HERMES, one, '', [['f', odd]]],
    ['text before it, white space between left out', HERMES, `Let me see.\n\n${one}`, 'Let me see.', [['f', odd]]],
    [
      'two calls',
      HERMES,
      `${one}\n${two}`,
      '',
      [
        ['f', odd],
        ['g_2', '{}'],
      ],
    ],
    ['cut off in the arguments', HERMES, one.slice(0, one.indexOf(odd) + 6), '', [['f', odd.slice(0, 6)]]],
    ['cut off in the name', HERMES, '<tool_call>\n{"name": "ab', '', []],
    ['JSON at the start', bare, '{"name": "f", "parameters": {"x": 1}}', '', [['f', '{"x": 1}']]],
    ['JSON later is text', bare, 'so {"name": "f", "parameters": {}}', 'so {"name": "f", "parameters": {}}', []],
    ['other JSON is text', bare, '{"nam": 1} {"name": "', '{"nam": 1} {"name": "', []],
  ];
  for (const [name, syntax, text, content, calls] of cases)
    test(name, () => {
      for (let size = 1; size <= text.length; size++)
        assert.deepEqual(read(syntax, text, size), { content, calls }, `${size}`);
    });
});

test('the grammar takes what the syntax writes and nothing else', () => {
  const functions = [
    {
      name: 'f',
      parameters: {
        type: 'object',
        properties: { x: { type: 'integer' } },
        required: ['x'],
        additionalProperties: false,
      },
    },
    { name: 'g', parameters: { type: 'object', properties: {}, additionalProperties: false } },
  ];
  const takes = (several: boolean, text: string): boolean => {
    const automaton = new Automaton(callGrammar(HERMES, functions, several).whole);
    let state = automaton.start;
    for (const b of Buffer.from(text)) if ((state = automaton.step(state, b)) === DEAD) return false;
    return automaton.accepts(state);
  };
  const call = (name: string, json: string): string => callText(HERMES, { name, arguments: json });
  assert.ok(takes(false, call('f', '{"x": 3}')));
  assert.ok(takes(true, `${call('f', '{"x": 3}')}\n${call('g', '{}')}`));
  assert.ok(!takes(false, `${call('f', '{"x": 3}')}\n${call('g', '{}')}`));
  for (const wrong of [
    call('g', '{"x": 3}'),
    call('f', '{}'),
    call('h', '{}'),
    call('f', '{"x": "3"}'),
    call('f', '{"x": 3'),
    '',
  ])
    assert.ok(!takes(true, wrong), wrong);
});
