/** Learning rate as a share of its peak, by step. */
import type { ScheduleConfig } from './config.ts';

/** Multiplier for optimiser step `step` (counted from 0) of `total`. */
export function scheduleFactor(config: ScheduleConfig, step: number, total: number): number {
  const warmup = Math.round(config.warmup * total);
  if (step < warmup) return (step + 1) / warmup;
  switch (config.kind) {
    case 'constant':
      return 1;
    case 'cosine': {
      const progress = (step - warmup) / Math.max(1, total - warmup);
      return config.floor + (1 - config.floor) * 0.5 * (1 + Math.cos(Math.PI * Math.min(1, progress)));
    }
    case 'wsd': {
      const decay = Math.max(1, Math.round(config.decay * total));
      const start = total - decay;
      if (step < start) return 1;
      const left = Math.max(0, 1 - (step - start + 1) / decay);
      const shaped =
        config.shape === 'linear'
          ? left
          : config.shape === 'sqrt'
            ? 1 - Math.sqrt(1 - left)
            : 0.5 * (1 - Math.cos(Math.PI * left));
      return config.floor + (1 - config.floor) * shaped;
    }
  }
}
