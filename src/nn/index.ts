/** Layers. Importing this registers the built-in kinds of every slot. */
import './attention.ts';
import './ffn.ts';
import './head.ts';
import './norm.ts';
import './positions.ts';

export { Choices, choose, type ForwardContext, forwardContext, repeats, tap } from './context.ts';
export { type KindConfig, kindSchema } from './kinds.ts';
export { type LowRank, withLowRank } from './low-rank.ts';
export * from './module.ts';
export * from './parametrise.ts';
export { evenForRows, type RowPass, type RowState, recent } from './rows.ts';
export * from './slots.ts';
export * from './stack.ts';
