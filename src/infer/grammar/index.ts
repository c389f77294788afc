/** Constrained output: grammars over bytes, from JSON Schema, as masks over tokens. */
export { Automaton, DEAD } from './automaton.ts';
export { type JsonSchema, objectGrammar, schemaGrammar } from './json-schema.ts';
export { Grammar, GrammarMask, TokenTable } from './mask.ts';
export * from './nodes.ts';
