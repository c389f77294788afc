/**
 * JSON Schema to a grammar: every text of the grammar is valid under the schema. What cannot be promised is refused, by
 * the keyword's name; nothing is ignored but annotations. Properties come in the order in which the schema names them.
 */
import { AnsatzError } from '../../backend/errors.ts';
import { fruitful } from './fruitful.ts';
import { intRange } from './int-range.ts';
import * as J from './json-text.ts';
import { alt, empty, literal, type Node, never, optional, repeat, seq } from './nodes.ts';
import { type Limit, numberRange } from './number-range.ts';
import { otherThan } from './other-than.ts';
import { patternNode } from './pattern.ts';

export type JsonSchema = boolean | { readonly [keyword: string]: unknown };
type Obj = { readonly [keyword: string]: unknown };

const ANNOTATIONS = [
  'title',
  'description',
  'default',
  'examples',
  '$schema',
  '$id',
  '$comment',
  'deprecated',
  'readOnly',
  'writeOnly',
];
const BY_TYPE: Readonly<Record<string, readonly string[]>> = {
  object: ['properties', 'required', 'additionalProperties'],
  array: ['items', 'prefixItems', 'minItems', 'maxItems'],
  string: ['minLength', 'maxLength', 'pattern', 'format'],
  integer: ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'],
  number: ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'],
  boolean: [],
  null: [],
};
const GENERAL = ['type', 'enum', 'const', 'anyOf', 'oneOf', 'allOf', '$ref', '$defs', 'definitions'];

const FORMATS: Readonly<Record<string, string>> = {
  date: '^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])$',
  time: '^([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$',
  'date-time':
    '^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$',
  uuid: '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$',
  email: '^[a-z0-9]+([._-][a-z0-9]+)*@[a-z0-9]+(-[a-z0-9]+)*(\\.[a-z]{2,10})+$',
  ipv4: '^((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])$',
};

/** Schemas within schemas. */
const DEEPEST = 100;

class Compiler {
  private readonly root: JsonSchema;
  private depth = 0;
  private readonly refs = new Map<string, Node>();
  private readonly any = J.anyValue();

  constructor(root: JsonSchema) {
    this.root = root;
  }

  compile(schema: JsonSchema, path: string): Node {
    if (++this.depth > DEEPEST) throw refuse('#', `is more than ${DEEPEST} schemas deep`);
    const node = this.node(schema, path);
    this.depth--;
    return node;
  }

  private node(schema: JsonSchema, path: string): Node {
    if (schema === true) return this.any;
    if (schema === false) return never;
    if (typeof schema !== 'object' || schema === null || Array.isArray(schema)) throw refuse(path, 'is not a schema');
    const used = this.check(schema, path);
    if ('$ref' in schema) return this.alone(schema, '$ref', path, () => this.reference(schema.$ref, path));
    if ('const' in schema || 'enum' in schema) {
      const keyword = 'const' in schema ? 'const' : 'enum';
      const values = keyword === 'const' ? [schema.const] : schema.enum;
      if (!Array.isArray(values) || values.length === 0) throw refuse(path, 'enum must be a list of values');
      const fitting = values.filter((v) => fits(v, schema.type));
      if (fitting.length === 0) throw refuse(path, `no value of ${keyword} is of type ${JSON.stringify(schema.type)}`);
      return this.alone(schema, keyword, path, () => alt(...fitting.map(valueText)));
    }
    for (const key of ['anyOf', 'oneOf'] as const)
      if (key in schema) return this.alone(schema, key, path, () => this.either(schema, key, path));
    if ('allOf' in schema) {
      const parts = schema.allOf as JsonSchema[];
      if (!Array.isArray(parts) || parts.length !== 1)
        throw refuse(path, 'allOf of more than one schema is not supported');
      return this.alone(schema, 'allOf', path, () => this.compile(parts[0], `${path}/allOf/0`));
    }
    const types = this.types(schema, used, path);
    return alt(...types.map((t) => this.ofType(t, schema, path)));
  }

  /** Keywords that matter, when all of them are known. */
  private check(schema: Obj, path: string): string[] {
    const known = [...GENERAL, ...Object.values(BY_TYPE).flat()];
    const keys = Object.keys(schema).filter((k) => !ANNOTATIONS.includes(k));
    const unknown = keys.find((k) => !known.includes(k));
    if (unknown) throw refuse(path, `keyword '${unknown}' is not supported`);
    return keys;
  }

  /** A keyword that says everything: others beside it would have to be joined with it. */
  private alone(schema: Obj, keyword: string, path: string, make: () => Node): Node {
    const beside = Object.keys(schema).find(
      (k) => k !== keyword && !ANNOTATIONS.includes(k) && !['$defs', 'definitions', 'type'].includes(k),
    );
    if (beside) throw refuse(path, `'${beside}' beside '${keyword}' is not supported`);
    if ('type' in schema && keyword !== 'enum' && keyword !== 'const')
      throw refuse(path, `'type' beside '${keyword}' is not supported`);
    return make();
  }

  private either(schema: Obj, key: 'anyOf' | 'oneOf', path: string): Node {
    const parts = schema[key];
    if (!Array.isArray(parts) || parts.length === 0) throw refuse(path, `${key} must be a list of schemas`);
    if (key === 'oneOf' && !disjoint(parts))
      throw refuse(path, 'oneOf is supported where its schemas have different types only', 'use anyOf');
    return alt(...parts.map((p, k) => this.compile(p as JsonSchema, `${path}/${key}/${k}`)));
  }

  private types(schema: Obj, used: readonly string[], path: string): string[] {
    const { type } = schema;
    if (type === undefined) {
      const kinds = Object.keys(BY_TYPE).filter((t) => t !== 'integer');
      const implied = kinds.filter((t) => BY_TYPE[t].some((k) => used.includes(k)));
      if (implied.length === 0) return kinds;
      if (implied.length > 1) throw refuse(path, 'needs a type');
      return implied;
    }
    const list = Array.isArray(type) ? type : [type];
    const wrong = list.find((t) => typeof t !== 'string' || !Object.hasOwn(BY_TYPE, t));
    if (list.length === 0 || wrong !== undefined) throw refuse(path, `type '${String(wrong)}' is not one of JSON's`);
    const stray = used.find((k) => !GENERAL.includes(k) && !(list as string[]).some((t) => BY_TYPE[t].includes(k)));
    if (stray) throw refuse(path, `'${stray}' says nothing of type ${list.join(', ')}`);
    return list as string[];
  }

  private ofType(type: string, schema: Obj, path: string): Node {
    switch (type) {
      case 'object':
        return this.object(schema, path);
      case 'array':
        return this.array(schema, path);
      case 'string':
        return stringOf(schema, path);
      case 'integer':
        return integerOf(schema, path);
      case 'number':
        return numberOf(schema, path);
      case 'boolean':
        return alt(literal('true'), literal('false'));
      default:
        return literal('null');
    }
  }

  private object(schema: Obj, path: string): Node {
    const properties = (schema.properties ?? {}) as Obj;
    const required = (schema.required ?? []) as string[];
    if (typeof properties !== 'object' || Array.isArray(properties)) throw refuse(path, 'properties must be an object');
    if (!Array.isArray(required)) throw refuse(path, 'required must be a list of names');
    const names = Object.keys(properties);
    const missing = required.find((name) => !names.includes(name));
    if (missing !== undefined && schema.additionalProperties === false)
      throw refuse(path, `required property '${missing}' is not among its properties`);
    if (missing !== undefined) throw refuse(path, `required property '${missing}' needs a schema in properties`);
    const members = names.map((name) =>
      J.member(
        literal(JSON.stringify(name)),
        this.compile(properties[name] as JsonSchema, `${path}/properties/${name}`),
      ),
    );
    const { additionalProperties = true } = schema;
    let others: Node | null = null;
    if (additionalProperties !== false) {
      const value = this.compile(additionalProperties as JsonSchema, `${path}/additionalProperties`);
      others = J.member(J.quoted(otherThan(names)), value);
    }
    // rest(k, first): members k and later, where `first` says that none has come yet.
    const made = new Map<string, Node>();
    const rest = (k: number, first: boolean): Node => {
      const key = `${k}${first}`;
      const known = made.get(key);
      if (known) return known;
      let node: Node;
      if (k === names.length)
        node = !others ? empty : first ? optional(J.separated(others, others)) : repeat(J.after(others), 0, Infinity);
      else {
        const here = seq(first ? members[k] : J.after(members[k]), rest(k + 1, false));
        node = required.includes(names[k]) ? here : alt(here, rest(k + 1, first));
      }
      made.set(key, node);
      return node;
    };
    return J.object(rest(0, true));
  }

  private array(schema: Obj, path: string): Node {
    const { minItems = 0, maxItems = Infinity, prefixItems, items = true } = schema;
    const [min, max] = [count(minItems, 'minItems', path), count(maxItems, 'maxItems', path)];
    if (min > max) throw refuse(path, `minItems ${min} is more than maxItems ${max}`);
    if (prefixItems === undefined) return J.list(this.compile(items as JsonSchema, `${path}/items`), min, max);
    if (!Array.isArray(prefixItems)) throw refuse(path, 'prefixItems must be a list of schemas');
    const first = (prefixItems as JsonSchema[]).map((s, k) => this.compile(s, `${path}/prefixItems/${k}`));
    if (items !== false || min < first.length)
      throw refuse(path, `prefixItems is supported with items false and minItems ${first.length} only`);
    if (max < first.length) throw refuse(path, 'maxItems is less than prefixItems has');
    const body = first.map((item, k) => (k === 0 ? seq(item, J.space) : J.after(seq(item, J.space))));
    return seq(literal('['), J.space, ...body, literal(']'));
  }

  private reference(ref: unknown, path: string): Node {
    if (typeof ref !== 'string' || !ref.startsWith('#'))
      throw refuse(path, `$ref '${String(ref)}' does not lie in this schema`);
    const known = this.refs.get(ref);
    if (known) return known;
    const node: Node = { kind: 'ref', name: ref, target: null };
    this.refs.set(ref, node);
    let at: unknown = this.root;
    for (const part of ref.slice(1).split('/').filter(Boolean)) {
      const name = decoded(part).replace(/~1/g, '/').replace(/~0/g, '~');
      at = typeof at === 'object' && at !== null && Object.hasOwn(at, name) ? (at as Obj)[name] : undefined;
    }
    if (at === undefined) throw refuse(path, `$ref '${ref}' leads nowhere`);
    node.target = this.compile(at as JsonSchema, ref);
    if (leadsToItself(node)) throw refuse(path, `$ref '${ref}' leads to itself`);
    return node;
  }
}

/** A part of a $ref; one that is no escaped text is taken as it stands. */
function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** Whether following references and choices alone comes back: such a schema has no text. */
function leadsToItself(start: Node): boolean {
  const seen = new Set<Node>();
  const walk = (n: Node): boolean => {
    if (n === start && seen.size > 0) return true;
    if (seen.has(n)) return false;
    seen.add(n);
    if (n.kind === 'ref') return n.target !== null && walk(n.target);
    return n.kind === 'alt' && n.items.some(walk);
  };
  return walk(start);
}

function stringOf(schema: Obj, path: string): Node {
  const { minLength = 0, maxLength = Infinity, pattern, format } = schema;
  const [min, max] = [count(minLength, 'minLength', path), count(maxLength, 'maxLength', path)];
  if (min > max) throw refuse(path, `minLength ${min} is more than maxLength ${max}`);
  if (pattern === undefined && format === undefined) return J.string(min, max);
  if (pattern !== undefined && format !== undefined)
    throw refuse(path, 'pattern and format together are not supported');
  if (min > 0 || max < Infinity) throw refuse(path, 'lengths beside pattern or format are not supported');
  if (format !== undefined && !Object.hasOwn(FORMATS, String(format)))
    throw refuse(path, `format '${String(format)}' is not supported`, `use ${Object.keys(FORMATS).join(', ')}`);
  try {
    return J.quoted(patternNode(format !== undefined ? FORMATS[String(format)] : String(pattern)));
  } catch (error) {
    if (error instanceof AnsatzError) throw refuse(path, error.message);
    throw error;
  }
}

/** The narrower of both bounds of each side. */
function limits(schema: Obj, path: string): { lo: Limit; hi: Limit } {
  const bound = (name: string, none: number): number => {
    const x = schema[name] ?? none;
    if (typeof x !== 'number') throw refuse(path, `${name} must be a number`);
    return x;
  };
  const [lo, hi] = [bound('minimum', -Infinity), bound('maximum', Infinity)];
  const [above, below] = [bound('exclusiveMinimum', -Infinity), bound('exclusiveMaximum', Infinity)];
  return {
    lo: above >= lo && above !== -Infinity ? { at: above, open: true } : { at: lo, open: false },
    hi: below <= hi && below !== Infinity ? { at: below, open: true } : { at: hi, open: false },
  };
}

function numberOf(schema: Obj, path: string): Node {
  const { lo, hi } = limits(schema, path);
  if (lo.at === -Infinity && hi.at === Infinity) return J.number;
  if (lo.at > hi.at || (lo.at === hi.at && (lo.open || hi.open)))
    throw refuse(path, `no number lies between ${lo.at} and ${hi.at}`);
  const node = numberRange(lo, hi);
  if (!node)
    throw refuse(path, 'its bounds have too many digits', 'use at most 6 digits before the point, 9 behind it');
  return node;
}

function integerOf(schema: Obj, path: string): Node {
  const { lo, hi } = limits(schema, path);
  const min = lo.open ? Math.floor(lo.at) + 1 : Math.ceil(lo.at);
  const max = hi.open ? Math.ceil(hi.at) - 1 : Math.floor(hi.at);
  if (min === -Infinity && max === Infinity) return J.integer;
  if (min > max) throw refuse(path, `no integer lies between ${min} and ${max}`);
  return intRange(min, max);
}

const refuse = (path: string, why: string, hint?: string): AnsatzError =>
  new AnsatzError(`JSON schema${path === '#' ? '' : ` at ${path}`}: ${why}`, hint ? { hint } : {});

function count(x: unknown, name: string, path: string): number {
  if (x === Infinity || (typeof x === 'number' && Number.isInteger(x) && x >= 0)) return x as number;
  throw refuse(path, `${name} must be a whole number from 0 on`);
}

const valueText = (v: unknown): Node => literal(JSON.stringify(v));

const typeOf = (v: unknown): string[] =>
  v === null
    ? ['null']
    : Array.isArray(v)
      ? ['array']
      : typeof v === 'number'
        ? Number.isInteger(v)
          ? ['integer', 'number']
          : ['number']
        : [typeof v];

const fits = (v: unknown, type: unknown): boolean =>
  type === undefined || typeOf(v).some((t) => (Array.isArray(type) ? type.includes(t) : type === t));

/** Schemas of different types: no value is valid under two of them. */
function disjoint(parts: readonly unknown[]): boolean {
  const types = parts.flatMap((p) => {
    const { type } = (p ?? {}) as Obj;
    return Array.isArray(type) ? type : [type];
  });
  const names = types.map((t) => (t === 'integer' ? 'number' : t));
  return names.every((t) => typeof t === 'string') && new Set(names).size === names.length;
}

/** @throws AnsatzError that names the place and the keyword that is not supported. */
export function schemaGrammar(schema: JsonSchema): Node {
  const node = fruitful(new Compiler(schema).compile(schema, '#'));
  if (!node) throw refuse('#', 'no value is valid under it');
  return node;
}

/** Any JSON object: response_format json_object. */
export const objectGrammar = (): Node => schemaGrammar({ type: 'object' });
