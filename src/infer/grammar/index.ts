/** Constrained output: grammars over bytes, from JSON Schema, as masks over tokens. */
export { Automaton, DEAD } from './automaton.ts';
export { type Callable, callGrammar } from './calls.ts';
export { type JsonSchema, objectGrammar, schemaGrammar } from './json-schema.ts';
export { type AnswerMask, Grammar, GrammarMask, type TableOptions, TokenTable } from './mask.ts';
export * from './nodes.ts';
export { TriggeredGrammar } from './triggered.ts';
