/** Forgetful causal masking (src/tricks/fcm): next-token prediction with some past tokens hidden. */
import { z } from 'zod';
import { AnsatzError } from '../backend/errors.ts';
import { decoderOnly, plainShape } from './causal.ts';
import { registerObjective } from './registry.ts';

registerObjective({
  kind: 'fcm',
  summary: 'next-token prediction with a random share of past tokens hidden (Liu et al. 2022)',
  options: z.strictObject({
    /** The share of hidden tokens is drawn uniformly between these for each row. */
    min: z.number().min(0).max(1).default(0),
    max: z.number().min(0).max(1).default(0.15),
  }),
  build: ({ min, max }, sizes) => {
    decoderOnly(sizes, 'fcm');
    if (min > max) throw new AnsatzError(`objective fcm: min ${min} is above max ${max}`);
    return {
      shape: { ...plainShape(sizes), keep: true },
      specials: [],
      rows: () => ({
        kind: 'row',
        change: (row, random) => {
          const share = min + (max - min) * random.uniform();
          let targets = 0;
          for (let k = 0; k < row.inputs.length; k++) {
            // A segment's first token says where it begins: it stays.
            const first = k === 0 || row.segments[k] !== row.segments[k - 1];
            const hidden = random.uniform() < share;
            row.keep![k] = hidden && !first ? 0 : 1;
            if (row.targets[k] >= 0) targets++;
          }
          return targets;
        },
      }),
    };
  },
});
