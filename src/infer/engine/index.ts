/** Decoding: passes over rows, pages, and the scheduler that serves many requests at once. */
export type { Decoding, EngineStats } from './decoding.ts';
export { Engine, type EngineOptions } from './engine.ts';
export { Flow } from './flow.ts';
export { type PageStats, Pages } from './pages.ts';
export { MAX_ROWS, Passes, type PassOptions, type Row } from './passes.ts';
export { bytesOf, type PoolRequest, poolBytes, poolsOf } from './pools.ts';
export type {
  Draft,
  Drafter,
  Drafting,
  DraftRequest,
  Finished,
  FinishReason,
  Pick,
  Picker,
  Request,
} from './sequence.ts';
