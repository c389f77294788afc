/** Grammars of calls: a syntax with the names of functions and the schemas of their arguments. */
import type { CallSyntax } from '../text/calls.ts';
import { type JsonSchema, schemaGrammar } from './json-schema.ts';
import { alt, literal, type Node, repeat, seq } from './nodes.ts';

export interface Callable {
  readonly name: string;
  /** An object's schema. */
  readonly parameters: JsonSchema;
}

export interface CallGrammar {
  /** One call or, where that is allowed and the syntax has words for it, several. */
  readonly whole: Node;
  /** The same behind the trigger. */
  readonly rest: Node;
}

/** @throws AnsatzError when a schema cannot be promised. */
export function callGrammar(syntax: CallSyntax, functions: readonly Callable[], several: boolean): CallGrammar {
  const { trigger, begin, middle, end, between } = syntax;
  const body = alt(
    ...functions.map((f) => seq(literal(f.name), literal(middle), schemaGrammar(f.parameters), literal(end))),
  );
  const more =
    several && between !== null
      ? [repeat(seq(literal(between), literal(begin), body), 0, Number.POSITIVE_INFINITY)]
      : [];
  return {
    whole: seq(literal(begin), body, ...more),
    rest: seq(literal(begin.slice(trigger.length)), body, ...more),
  };
}
