/** Constrained output: whatever is picked, what comes out is valid; masks are what trying every token would give. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Ajv2020 } from 'ajv/dist/2020.js';
import { Tokenizer } from '../../src/data/tokenizer/index.ts';
import { Automaton, DEAD, Grammar, type JsonSchema, schemaGrammar, TokenTable } from '../../src/infer/grammar/index.ts';
import { randomStream, Sampler } from '../../src/infer/sampling/index.ts';

const tokenizer = Tokenizer.train(
  [
    '{"name": "Ann", "age": 31, "tags": ["a", "b"], "ok": true, "none": null}\n'.repeat(20),
    'naïve 日本語 👩‍👩‍👧 text ',
  ],
  { vocabSize: 400 },
);
const table = new TokenTable(tokenizer);
const ajv = new Ajv2020({
  strict: false,
  formats: { 'date-time': true, uuid: true, date: true, time: true, email: true, ipv4: true },
});

/** Texts drawn token by token; logits lean towards ending, so that they do. */
function drawn(schema: JsonSchema, count: number, seed: number): string[] {
  const grammar = new Grammar(new Automaton(schemaGrammar(schema)), table);
  const uniform = randomStream(seed);
  return Array.from({ length: count }, (_, n) => {
    const mask = grammar.begin();
    const s = new Sampler({ seed: seed * 1000 + n, mask });
    const ids: number[] = [];
    for (let k = 0; k < 400; k++) {
      const logits = Float32Array.from({ length: table.size }, () => 6 * uniform());
      // Closing characters win more and more.
      for (const c of '"]}0') logits[tokenizer.encode(c)[0]] += k > 30 ? 30 : 0;
      logits[table.ends[0]] += 4;
      const pick = s.pick(logits);
      assert.ok(pick, 'something is always possible');
      if (pick.token === table.ends[0]) return tokenizer.decode(Int32Array.from(ids));
      ids.push(pick.token);
    }
    return '';
  });
}

const person = {
  type: 'object',
  properties: {
    name: { type: 'string', minLength: 1, maxLength: 8 },
    age: { type: 'integer', minimum: 0, maximum: 130 },
    tags: { type: 'array', items: { enum: ['a', 'b', 3, null] }, minItems: 1, maxItems: 3 },
    partner: { anyOf: [{ $ref: '#' }, { type: 'null' }] },
  },
  required: ['name', 'age'],
  additionalProperties: false,
} as const;

const schemas: Record<string, JsonSchema> = {
  person,
  anything: true,
  object: { type: 'object' },
  'other properties': {
    type: 'object',
    properties: { a: { const: 1 }, ab: { type: 'boolean' } },
    additionalProperties: { type: 'integer', minimum: -3, maximum: 12 },
  },
  'nested lists': {
    $ref: '#/$defs/tree',
    $defs: { tree: { type: 'array', items: { $ref: '#/$defs/tree' }, maxItems: 2 } },
  },
  pattern: { type: 'string', pattern: '^(ab|c+)-[0-9]{2,3}"?\\\\$' },
  'pattern anywhere': { type: 'string', pattern: '[a-z]' },
  uuid: { type: 'string', format: 'uuid' },
  'several types': { type: ['integer', 'boolean', 'null'] },
  oneOf: { oneOf: [{ type: 'string', maxLength: 2 }, { type: 'number' }] },
  tuple: { type: 'array', prefixItems: [{ type: 'integer' }, { type: 'boolean' }], items: false, minItems: 2 },
  negative: { type: 'integer', exclusiveMaximum: -17, minimum: -205 },
  const: { const: { a: [1, 'x"y'] } },
};

describe('random picks give valid texts', () => {
  for (const [name, schema] of Object.entries(schemas))
    test(name, () => {
      const valid = ajv.compile(schema);
      const texts = drawn(schema, 25, 7).filter((t) => t !== '');
      assert.ok(texts.length >= 15, `${texts.length} of 25 ended`);
      for (const text of texts) {
        const value = JSON.parse(text);
        assert.ok(valid(value), `${text}: ${ajv.errorsText(valid.errors)}`);
      }
      assert.ok(new Set(texts).size > (name === 'const' ? 0 : 1), 'more than one text is possible');
    });
});

describe('what the grammar accepts', () => {
  const accepts = (schema: JsonSchema, text: string): boolean => {
    const a = new Automaton(schemaGrammar(schema));
    let state = a.start;
    for (const b of Buffer.from(text, 'utf8')) if ((state = a.step(state, b)) === DEAD) return false;
    return a.accepts(state);
  };

  test('whole numbers of a range, all of them and no other', () => {
    for (const [min, max] of [
      [0, 0],
      [3, 3],
      [-7, 12],
      [95, 1003],
      [-120, -98],
      [0, 1000],
      [-1, 0],
      [10, 19],
    ])
      for (let n = -1300; n <= 1300; n++)
        assert.equal(
          accepts({ type: 'integer', minimum: min, maximum: max }, String(n)),
          n >= min && n <= max,
          `${n} in ${min}..${max}`,
        );
    assert.ok(accepts({ type: 'integer', minimum: 5 }, '123456789012345'));
    assert.ok(!accepts({ type: 'integer', minimum: 5 }, '4'));
    assert.ok(!accepts({ type: 'integer' }, '-0') && !accepts({ type: 'integer' }, '01'));
  });

  test('numbers of a range, whatever their digits', () => {
    const ends: [number | null, number | null][] = [
      ...[
        [0, 1],
        [0.25, 0.75],
        [-0.5, 0.05],
        [-2.5, -1.25],
        [3, 3],
        [0.125, 0.1251],
        [19.9, 100.01],
      ],
      ...[
        [null, 0.3],
        [7.5, null],
        [null, -2],
        [-0.001, null],
      ],
    ] as [number | null, number | null][];
    const values = ends
      .flat()
      .flatMap((x) => (x === null ? [] : [0, 1e-3, 1e-6, 0.5, 1, 10].flatMap((d) => [x - d, x + d])));
    const texts = new Set(values.flatMap((v) => [0, 1, 3, 6, 8].map((places) => v.toFixed(places))));
    let inside = 0;
    for (const [lo, hi] of ends)
      for (const open of [false, true]) {
        const [least, most] = open ? ['exclusiveMinimum', 'exclusiveMaximum'] : ['minimum', 'maximum'];
        const schema = {
          type: 'number',
          ...(lo === null ? {} : { [least]: lo }),
          ...(hi === null ? {} : { [most]: hi }),
        };
        if (open && lo === hi) continue;
        const a = new Automaton(schemaGrammar(schema));
        const valid = ajv.compile(schema);
        for (const text of texts) {
          if (/^-0(\.0*)?$/.test(text)) continue; // written as 0 only
          let state = a.start;
          for (const b of Buffer.from(text)) if (state !== DEAD) state = a.step(state, b);
          const accepted = state !== DEAD && a.accepts(state);
          assert.equal(accepted, valid(Number(text)), `${text} under ${JSON.stringify(schema)}`);
          inside += accepted ? 1 : 0;
        }
      }
    assert.ok(inside > 300, `${inside}`);
  });

  test('what nothing can come of is never begun', () => {
    const schema = {
      ...{ type: 'object', additionalProperties: false },
      properties: { a: false, b: { anyOf: [false, { type: 'null' }] }, c: { type: 'array', items: false } },
    };
    assert.ok(accepts(schema, '{"b": null, "c": []}') && accepts(schema, '{}'));
    const automaton = new Automaton(schemaGrammar(schema));
    let state = automaton.start;
    for (const b of Buffer.from('{"')) state = automaton.step(state, b);
    assert.equal(automaton.step(state, 'a'.charCodeAt(0)), DEAD);
    assert.notEqual(automaton.step(state, 'b'.charCodeAt(0)), DEAD);
  });

  test('JSON as it may be written', () => {
    const texts = [
      '{"a": [1, 2.5e-3, "x\\u00e9\\ud83d\\ude00"]}',
      '[]',
      '{}',
      '"é日👩"',
      '-0.5',
      '{\n  "a": null\n}',
      'true',
    ];
    for (const text of texts) assert.ok(accepts(true, text), text);
    for (const text of ['{a: 1}', '[1,]', '"\n"', '01', '"\\ud83d"', '"\\x"', '', 'nul', '{"a":1}}'])
      assert.ok(!accepts(true, text), text);
  });

  test('required properties, in order, no others', () => {
    for (const text of [
      '{"name":"x","age":1}',
      '{"name": "x", "age": 130, "tags": ["a"]}',
      '{"name":"x","age":0,"partner":null}',
    ])
      assert.ok(accepts(person, text), text);
    for (const text of [
      '{"name":"x"}',
      '{"age":1,"name":"x"}',
      '{"name":"x","age":131}',
      '{"name":"","age":1}',
      '{"name":"x","age":1,"tags":[]}',
      '{"name":"x","age":1,"b":1}',
    ])
      assert.ok(!accepts(person, text), text);
    const others = schemas['other properties'];
    assert.ok(accepts(others, '{"ab":true,"abc":12,"b":-3}') && accepts(others, '{"":1}'));
    assert.ok(!accepts(others, '{"ab":1}') && !accepts(others, '{"c":1,"a":1}') && !accepts(others, '{"\\u0061":2}'));
  });

  test('lengths count characters, not bytes', () => {
    assert.ok(accepts({ type: 'string', maxLength: 3 }, '"日é👩"'));
    assert.ok(!accepts({ type: 'string', maxLength: 3 }, '"日é👩x"'));
    assert.ok(!accepts({ type: 'string', minLength: 3 }, '"éé"'));
  });

  test('UTF-8 that is not: overlong, surrogates, beyond the last plane', () => {
    const a = new Automaton(schemaGrammar({ type: 'string' }));
    for (const bytes of [
      [0xc0, 0x80],
      [0xed, 0xa0, 0x80],
      [0xf4, 0x90, 0x80, 0x80],
      [0xff],
      [0x80],
      [0xe0, 0x80, 0x80],
    ]) {
      let state = a.step(a.start, 0x22);
      for (const b of bytes) if (state !== DEAD) state = a.step(state, b);
      assert.equal(state, DEAD, bytes.join());
    }
  });
});

test('masks equal trying every token, in every state that a text goes through', () => {
  const grammar = new Grammar(new Automaton(schemaGrammar(person)), table);
  const { automaton } = grammar;
  let state = automaton.start;
  let seen = 0;
  for (const b of Buffer.from(
    '{"name": "日x", "age": 12, "tags": ["a", 3], "partner": {"name":"q","age":0}}',
    'utf8',
  )) {
    const mask = grammar.mask(state);
    for (let id = 0; id < table.size; id++) {
      const bytes = table.place[id] < 0 ? null : table.bytes[table.place[id]];
      let at = bytes ? state : DEAD;
      for (const x of bytes ?? []) if (at !== DEAD) at = automaton.step(at, x);
      const allowed = id === table.ends[0] ? automaton.accepts(state) : at !== DEAD;
      assert.equal((mask[id >> 5] >>> (id & 31)) & 1, allowed ? 1 : 0, `token ${id} in state ${state}`);
      seen += allowed ? 1 : 0;
    }
    state = automaton.step(state, b);
    assert.notEqual(state, DEAD);
  }
  assert.ok(automaton.accepts(state) && seen > 1000);
});

/** Lists in lists. */
function nested(depth: number): JsonSchema {
  let schema: JsonSchema = { type: 'null' };
  for (let k = 1; k < depth; k++) schema = { type: 'array', items: schema };
  return schema;
}

describe('what cannot be promised is refused by name', () => {
  for (const [schema, what] of [
    [{ type: 'object', patternProperties: {} }, /patternProperties/],
    [{ type: 'string', format: 'hostname' }, /hostname/],
    [{ type: 'array', uniqueItems: true }, /uniqueItems/],
    [{ not: { type: 'null' } }, /'not'/],
    [{ allOf: [{ type: 'null' }, {}] }, /allOf/],
    [{ anyOf: [{ type: 'string' }], type: 'string' }, /'type' beside 'anyOf'/],
    [{ type: 'text' }, /'text'/],
    [{ $ref: '#/nowhere' }, /leads nowhere/],
    [{ $ref: '#' }, /leads to itself/],
    [{ type: 'string', pattern: '(?=a)' }, /look-around/],
    [{ type: 'string', pattern: '[a' }, /missing/],
    [{ type: 'integer', minimum: 4, maximum: 3 }, /no integer/],
    [{ type: 'object', properties: { a: { type: 'strin' } } }, /#\/properties\/a/],
    [{ oneOf: [{ type: 'string' }, { type: 'string' }] }, /oneOf/],
    [{ type: 'string', minimum: 3 }, /'minimum' says nothing of type string/],
    [{ type: 'number', minimum: 3, exclusiveMaximum: 3 }, /no number lies between 3 and 3/],
    [{ type: 'number', minimum: 1e-12 }, /too many digits/],
    // Names that every object has are no names of ours.
    [{ type: 'toString' }, /type 'toString' is not one of JSON's/],
    [{ type: 'string', format: 'constructor' }, /format 'constructor'/],
    [{ $ref: '#/__proto__' }, /leads nowhere/],
    [{ $ref: '#/%' }, /leads nowhere/],
    [{ type: 'array', prefixItems: 5, items: false }, /prefixItems must be a list/],
    // Schemas that nothing is valid under.
    [{ type: 'string', const: 5 }, /no value of const is of type "string"/],
    [{ type: 'string', enum: [1, 2] }, /no value of enum is of type "string"/],
    [{ type: 'integer', minimum: 1e16 }, /no value is valid/],
    [{ type: 'object', properties: { a: false }, required: ['a'] }, /no value is valid/],
    [{ type: 'array', items: { $ref: '#' }, minItems: 1 }, /no value is valid/],
    [nested(101), /more than 100 schemas deep/],
    [nested(20_000), /more than 100 schemas deep/],
  ] as [JsonSchema, RegExp][])
    test(String(what), () => assert.throws(() => schemaGrammar(schema), what));
});
