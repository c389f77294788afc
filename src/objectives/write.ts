/** Writing segments into rows, one after the other. */
import { AnsatzError } from '../backend/errors.ts';
import { IGNORE, type Row } from './objective.ts';

function tooLong(what: string, length: number): never {
  throw new AnsatzError(`${what} row of ${length} tokens overflows: its examples are longer than planned`);
}

/** Appends what the encoder reads; segments count from 1. */
export function encoderWriter(row: Row): {
  segment(...parts: readonly ArrayLike<number>[]): void;
  /** Pads the rest, which is nothing in a row that is planned exactly. */
  end(pad: number): void;
} {
  const { inputs, segments, positions } = row.encoder!;
  let [at, segment] = [0, 0];
  return {
    segment: (...parts) => {
      segment++;
      let position = 0;
      for (const part of parts) {
        if (at + part.length > inputs.length) tooLong('an encoder', inputs.length);
        for (let k = 0; k < part.length; k++, at++) {
          inputs[at] = part[k];
          segments[at] = segment;
          positions[at] = position++;
        }
      }
    },
    end: (pad) => {
      inputs.fill(pad, at);
      segments.fill(0, at);
      for (let k = at; k < positions.length; k++) positions[k] = 0;
    },
  };
}

/** Appends targets, each predicted from the one before it, the first from `start`. */
export function decoderWriter(row: Row): {
  segment(start: number, ...parts: readonly ArrayLike<number>[]): void;
  /** Tokens, each with its target: itself, or IGNORE. */
  counted(start: number, tokens: ArrayLike<number>, own: ArrayLike<number>): void;
  /** A sequence whose first `given` tokens are not predicted; all but its last token are inputs. */
  stream(sequence: ArrayLike<number>, given: number): void;
  /** Pads the rest; returns the number of targets. */
  end(pad: number): number;
} {
  const { inputs, targets, segments, positions, visible } = row;
  let [at, segment, counted] = [0, 0, 0];
  const put = (input: number, target: number, position: number): void => {
    if (at >= inputs.length) tooLong('a decoder', inputs.length);
    inputs[at] = input;
    targets[at] = target;
    segments[at] = segment;
    positions[at++] = position;
    if (target !== IGNORE) counted++;
  };
  return {
    segment: (start, ...parts) => {
      segment++;
      let [before, position] = [start, 0];
      for (const part of parts)
        for (let k = 0; k < part.length; k++) {
          put(before, part[k], position++);
          before = part[k];
        }
    },
    counted: (start, tokens, own) => {
      segment++;
      for (let k = 0; k < tokens.length; k++) put(k === 0 ? start : tokens[k - 1], own[k], k);
    },
    stream: (sequence, given) => {
      segment++;
      const first = at;
      for (let k = 0; k + 1 < sequence.length; k++) put(sequence[k], k + 1 < given ? IGNORE : sequence[k + 1], k);
      // The last given token predicts the first target: it and those before it see each other.
      visible?.fill(-1, first, at);
      visible?.fill(first + given - 1, first, first + given);
    },
    end: (pad) => {
      inputs.fill(pad, at);
      targets.fill(IGNORE, at);
      segments.fill(0, at);
      visible?.fill(-1, at);
      for (let k = at; k < positions.length; k++) positions[k] = 0;
      return counted;
    },
  };
}
