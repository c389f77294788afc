/** Every trick. Importing this registers them; add a line for a new folder. */
export { allTricks, applyPatch, type ConfigPatch, registerTrick, type Trick, trick } from './registry.ts';
