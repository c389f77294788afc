/** Looking inside: what a model expects, which experts and units fire, what a token reads. */
export { type Inspection, Inspector, type InspectorOptions, MOST_TOKENS } from './inspector.ts';
export type { LayerSeen } from './seen.ts';
