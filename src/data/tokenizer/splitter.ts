/** Pre-tokenisation in JavaScript, for patterns without a native scanner. The pieces are merged natively. */
import { byteLengthOfText, bytesFromText } from './escaped-text.ts';
import type { Stage } from './stages.ts';

const GPT2_REGEX =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

function splitBy(text: string, regex: RegExp, keep: 'both' | 'matches' | 'gaps', out: string[]): void {
  let end = 0;
  for (const match of text.matchAll(regex)) {
    if (keep !== 'matches' && match.index > end) out.push(text.slice(end, match.index));
    end = match.index + match[0].length;
    if (keep !== 'gaps' && match[0]) out.push(match[0]);
  }
  if (keep !== 'matches' && end < text.length) out.push(text.slice(end));
}

function runStage(stage: Stage, pieces: string[]): string[] {
  const out: string[] = [];
  for (const piece of pieces) {
    if (stage.kind === 'split') {
      splitBy(piece, stage.regex, stage.keep, out);
      continue;
    }
    const text = stage.addPrefixSpace && !piece.startsWith(' ') ? ` ${piece}` : piece;
    if (stage.split) splitBy(text, GPT2_REGEX, 'both', out);
    else out.push(text);
  }
  return out;
}

/** The pieces of a text as one buffer and the end of each piece in it. */
export function splitText(stages: Stage[], text: string): { bytes: Uint8Array; ends: Uint32Array } {
  const pieces = text ? stages.reduce((parts, stage) => runStage(stage, parts), [text]) : [];
  const ends = new Uint32Array(pieces.length);
  let end = 0;
  pieces.forEach((piece, k) => {
    end += byteLengthOfText(piece);
    ends[k] = end;
  });
  return { bytes: bytesFromText(pieces.join('')), ends };
}
