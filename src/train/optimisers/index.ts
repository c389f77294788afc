/** Optimisers. Importing this registers the built-in kinds. */
import './adamw.ts';
import './adafactor.ts';
import './lion.ts';
import './muon.ts';

export {
  makeOptimiser,
  type Optimiser,
  type OptimiserConfig,
  optimiserKinds,
  optimiserSchema,
  registerOptimiser,
  type TrainedParam,
} from './registry.ts';
