/** The grammars of a model's answers, kept for the next request that asks for the same. */
import { AnsatzError } from '../../backend/errors.ts';
import type { Tokenizer } from '../../data/tokenizer/index.ts';
import {
  type AnswerMask,
  Automaton,
  alt,
  type Callable,
  callGrammar,
  DEAD,
  Grammar,
  type JsonSchema,
  type Node,
  objectGrammar,
  schemaGrammar,
  TokenTable,
  TriggeredGrammar,
} from '../../infer/grammar/index.ts';
import type { CallSyntax } from '../../infer/text/calls.ts';
import type { Calling } from '../api/calling.ts';
import type { ResponseFormat } from '../api/schema.ts';
import { badRequest } from '../http/errors.ts';
import type { Tool } from './tools.ts';

/** What an answer is held to. */
export interface AnswerGrammar {
  begin(): AnswerMask;
}

/** Grammars kept, and states after which one is made anew. */
const GRAMMARS = 32;
const MAX_STATES = 50_000;
const MAX_SCHEMA = 64 << 10;

interface Kept {
  readonly grammar: AnswerGrammar;
  readonly automaton: Automaton;
}

export class Grammars {
  private readonly tokenizer: Tokenizer;
  private readonly vocab: number;
  private readonly ends: readonly number[];
  private readonly kept = new Map<string, Kept>();
  private table: TokenTable | null = null;
  private calls: TokenTable | null = null;

  /** @param ends tokens that end an answer, beside the end of texts */
  constructor(tokenizer: Tokenizer, vocab: number, ends: readonly number[]) {
    [this.tokenizer, this.vocab, this.ends] = [tokenizer, vocab, ends];
  }

  /** Null when any text will do. */
  ofFormat(format: ResponseFormat | undefined): AnswerGrammar | null {
    if (!format || format.type === 'text') return null;
    return this.keep(JSON.stringify(schemaOf(format)), 'response_format', () => {
      this.table ??= new TokenTable(this.tokenizer, { vocab: this.vocab, ends: this.ends });
      const automaton = new Automaton(formatNode(format));
      return { grammar: new Grammar(automaton, this.table), automaton };
    });
  }

  /** Calls, and text where it may be: of the format that is asked for, if any. */
  ofCalls(syntax: CallSyntax, calling: Calling, format: ResponseFormat | undefined): AnswerGrammar {
    const { callable, must, several } = calling;
    const text = must || !format || format.type === 'text' ? null : format;
    const functions = callable.map(({ function: { name, parameters, strict } }) => [name, parameters, strict]);
    const key = JSON.stringify([functions, must, several, text && schemaOf(text)]);
    return this.keep(`calls ${key}`, 'tools', () => {
      const { whole, rest } = callGrammar(syntax, functionsOf(callable), several);
      // Templates may spell their syntax with control tokens.
      const spelled = new Set(
        [...this.tokenizer.specialIds.keys()].filter((name) =>
          [syntax.begin, syntax.middle, syntax.end, syntax.between ?? ''].some((part) => part.includes(name)),
        ),
      );
      this.calls ??= new TokenTable(this.tokenizer, { vocab: this.vocab, ends: this.ends, spelled });
      const held = must || text !== null;
      const automaton = new Automaton(!held ? rest : text ? alt(whole, formatNode(text)) : whole);
      const grammar = new Grammar(automaton, this.calls);
      return { grammar: held ? grammar : new TriggeredGrammar(syntax.trigger, syntax.atStart, grammar), automaton };
    });
  }

  private keep(key: string, param: string, make: () => Kept): AnswerGrammar {
    if (key.length > MAX_SCHEMA) throw badRequest(`The schema is longer than ${MAX_SCHEMA} characters.`, param);
    let found = this.kept.get(key);
    if (!found || found.automaton.size > MAX_STATES) {
      found = refusing(param, make);
      if (this.kept.size >= GRAMMARS) this.kept.delete(this.kept.keys().next().value!);
    }
    this.kept.delete(key);
    this.kept.set(key, found);
    return found.grammar;
  }
}

/** Null: any object. */
const schemaOf = (format: ResponseFormat): JsonSchema | null =>
  format.type === 'json_schema' ? (format.json_schema.schema ?? true) : null;

function formatNode(format: ResponseFormat): Node {
  const schema = schemaOf(format);
  return schema === null ? objectGrammar() : schemaGrammar(schema);
}

const ANY_OBJECT = { type: 'object' };
const BRACE = '{'.charCodeAt(0);

/** @throws AnsatzError when a value of the schema may be something else than an object, or none can be one. */
function checkObject(schema: JsonSchema): void {
  const automaton = new Automaton(schemaGrammar(schema));
  for (let b = 0; b < 256; b++)
    if ((automaton.step(automaton.start, b) !== DEAD) !== (b === BRACE))
      throw new AnsatzError('arguments must be an object');
}

/** Functions with the schemas that are promised. One that must not be taken strictly may have one that cannot be. */
function functionsOf(tools: readonly Tool[]): Callable[] {
  return tools.map(({ function: { name, parameters, strict } }) => {
    if (!parameters) return { name, parameters: { ...ANY_OBJECT, additionalProperties: false } };
    const where = `tools.${name}.parameters`;
    const schema = 'type' in parameters || '$ref' in parameters ? parameters : { ...ANY_OBJECT, ...parameters };
    try {
      checkObject(schema);
      return { name, parameters: schema };
    } catch (error) {
      if (!(error instanceof AnsatzError)) throw error;
      if (strict === false) return { name, parameters: ANY_OBJECT };
      throw new AnsatzError(`${where}: ${error.message}`, {
        hint: error.hint ?? "change it, or set 'strict' to false to take any object",
      });
    }
  });
}

function refusing<T>(param: string, make: () => T): T {
  try {
    return make();
  } catch (error) {
    if (error instanceof AnsatzError)
      throw badRequest(error.hint ? `${error.message}; ${error.hint}` : error.message, param);
    throw error;
  }
}
