/** Next-token prediction: every token of every document from those before it. */
import { z } from 'zod';
import { AnsatzError } from '../backend/errors.ts';
import type { RowShape, Sizes } from './objective.ts';
import { registerObjective } from './registry.ts';

/** Rows as the packing makes them. */
export const plainShape = ({ length }: Sizes): RowShape => ({
  length,
  encoder: 0,
  visible: false,
  keep: false,
  segmented: false,
  targets: length,
});

/** @throws AnsatzError for a model with an encoder, which ordinary rows would leave without anything to read. */
export function decoderOnly(sizes: Sizes, kind: string): void {
  if (sizes.encoder)
    throw new AnsatzError(`objective ${kind} gives an encoder nothing to read`, {
      hint: "use objective prefix-lm or ul2 with this layout, or layout 'decoder'",
    });
}

registerObjective({
  kind: 'causal',
  summary: 'next-token prediction',
  options: z.strictObject({}),
  build: (_, sizes) => {
    decoderOnly(sizes, 'causal');
    return { shape: plainShape(sizes), specials: [] };
  },
});
