/** Every objective. Importing this registers them; add a line for a new file. */
import './causal.ts';
import './fcm.ts';
import './fim.ts';
import './prefix-lm.ts';
import './supervised.ts';
import './ul2.ts';

export * from './objective.ts';
export { RowRandom } from './random.ts';
export {
  buildObjective,
  type ObjectiveConfig,
  objectiveKinds,
  objectiveSchema,
  registerObjective,
  settledObjective,
} from './registry.ts';
export { ANSWER, ANSWERED, MARKS, READ } from './supervised.ts';
