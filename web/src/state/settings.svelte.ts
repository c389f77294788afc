/** How texts are drawn; the same for every way of writing. */
import type { Sampling } from '../lib/api.ts';

/** Stop texts that the API takes at most. */
const STOPS = 4;

export class Settings {
  temperature = $state(0.8);
  topP = $state(0.95);
  minP = $state(0);
  maxTokens = $state(200);
  /** Empty: another one each time. */
  seed = $state('');
  /** One a line; \n stands for a line break. */
  stop = $state('');
  system = $state('');
  /** Tint tokens by how sure the model was. */
  tint = $state(true);

  get sampling(): Sampling & { max_tokens: number } {
    const seed = this.seed.trim() === '' ? Math.floor(Math.random() * 2 ** 31) : Number(this.seed);
    const stop = this.stop
      .split('\n')
      .filter((line) => line !== '')
      .slice(0, STOPS)
      .map((line) => line.replace(/\\n/g, '\n').replace(/\\t/g, '\t'));
    return {
      temperature: this.temperature,
      top_p: this.topP,
      min_p: this.minP,
      max_tokens: Math.max(1, Math.floor(this.maxTokens || 1)),
      ...(Number.isFinite(seed) ? { seed: Math.floor(seed) } : {}),
      ...(stop.length > 0 ? { stop } : {}),
    };
  }
}
