/** Held-out text for encoder-decoders: each token once a target, what was already predicted read by the encoder. */
import { type HeldOutRows, IGNORE, type Row } from './objective.ts';
import { encoderWriter } from './write.ts';

/** What surrounds the given part, and what an encoder reads when nothing is given. */
export interface Frame {
  /** First input of the decoder. */
  readonly start: number;
  readonly before: readonly number[];
  readonly after: readonly number[];
  readonly alone: readonly number[];
  readonly pad: number;
}

/**
 * Rows of `length` tokens of which the first half was predicted in the row before: it goes to the encoder, as the given
 * part of the same document. A document that begins in the row has nothing given.
 */
export function continuationRows(length: number, frame: Frame): HeldOutRows {
  const overhead = frame.before.length + frame.after.length;
  const room = length + overhead;
  return {
    overlap: Math.floor(length / 2),
    encoder: room,
    change: (row) => {
      const given = leadingContext(row);
      const encoder = encoderWriter(row);
      const starts: number[] = [];
      for (let k = 0; k < row.inputs.length; k++)
        if (row.segments[k] !== 0 && (k === 0 || row.segments[k] !== row.segments[k - 1])) starts.push(k);
      for (const k of starts) row.inputs[k] = frame.start;
      // Many short documents leave less room for what is given: its end matters most.
      const own = Math.max(0, room - overhead - (starts.length - 1) * frame.alone.length);
      let left = room;
      starts.forEach((_, k) => {
        const parts = k === 0 && given.length > 0 ? [frame.before, given.slice(-own), frame.after] : [frame.alone];
        const size = parts.reduce((n, part) => n + part.length, 0);
        if (size <= left) encoder.segment(...parts);
        left -= size;
      });
      encoder.end(frame.pad);
    },
  };
}

/** Takes the context (targets that are ignored) out of the row's first segment and moves the rest to the front. */
function leadingContext(row: Row): Int32Array {
  const { inputs, targets, segments, positions } = row;
  let n = 0;
  while (n < targets.length && targets[n] === IGNORE && segments[n] === segments[0] && segments[n] !== 0) n++;
  if (n === 0) return new Int32Array(0);
  // The target of input k is input k + 1, so the given tokens are inputs 1 .. n.
  const given = inputs.slice(1, n + 1);
  const left = targets.length - n;
  for (const array of [inputs, targets, segments]) array.copyWithin(0, n);
  inputs.fill(inputs[0], left);
  targets.fill(IGNORE, left);
  segments.fill(0, left);
  let position = 0;
  for (let k = 0; k < positions.length; k++) {
    position = k > 0 && segments[k] === segments[k - 1] ? position + 1 : 0;
    positions[k] = position;
  }
  return given;
}
