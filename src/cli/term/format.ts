// Text for terminals: numbers with units (from train/run/units.ts), and strings measured by the cells they occupy.
export * from '../../train/run/units.ts';

// Control Sequence Introducer sequences (ECMA-48 5.4), the only ones this program writes into lines.
const CSI = `${String.fromCharCode(27)}\\[[0-?]*[ -/]*[@-~]`;
const EVERY_CSI = new RegExp(CSI, 'g');
const AROUND_CSI = new RegExp(`(${CSI})`);

export function stripAnsi(text: string): string {
  return text.replace(EVERY_CSI, '');
}

/** Cells a string occupies: combining marks none, East Asian wide characters and emoji two. */
export function displayWidth(text: string): number {
  let width = 0;
  for (const character of stripAnsi(text)) width += characterWidth(character);
  return width;
}

function characterWidth(character: string): number {
  const code = character.codePointAt(0)!;
  if (code >= 0x20 && code < 0x7f) return 1;
  if (/^[\p{Mn}\p{Me}\p{Cf}\p{Cc}]$/u.test(character)) return 0;
  // Wide and fullwidth ranges of Unicode Standard Annex 11, coarsely; emoji presentation from its own property.
  const wide =
    (code >= 0x1100 && code <= 0x115f) ||
    (code >= 0x2e80 && code <= 0xa4cf && code !== 0x303f) ||
    (code >= 0xac00 && code <= 0xd7a3) ||
    (code >= 0xf900 && code <= 0xfaff) ||
    (code >= 0xfe30 && code <= 0xfe6f) ||
    (code >= 0xff00 && code <= 0xff60) ||
    (code >= 0xffe0 && code <= 0xffe6) ||
    (code >= 0x20000 && code <= 0x3fffd);
  return wide || /^\p{Emoji_Presentation}$/u.test(character) ? 2 : 1;
}

/** Cut to at most `width` cells, with an ellipsis where something is lost; colours are kept and closed. */
export function truncate(text: string, width: number, ellipsis = '…'): string {
  if (displayWidth(text) <= width) return text;
  const room = width - displayWidth(ellipsis);
  if (room < 0) return '';
  let out = '';
  let used = 0;
  let coloured = false;
  for (const part of text.split(AROUND_CSI)) {
    if (part.startsWith('\x1b[')) {
      out += part;
      coloured = true;
      continue;
    }
    for (const character of part) {
      const cells = characterWidth(character);
      if (used + cells > room) return `${out}${ellipsis}${coloured ? '\x1b[0m' : ''}`;
      out += character;
      used += cells;
    }
  }
  return out;
}

export function pad(text: string, width: number, align: 'left' | 'right' = 'left'): string {
  const space = ' '.repeat(Math.max(0, width - displayWidth(text)));
  return align === 'left' ? text + space : space + text;
}

/**
 * Text from outside (model output, file names) made safe to print: control characters become visible, so that a
 * sample can neither move the cursor nor reorder the line (bidirectional controls). Line breaks and tabs stay unless `oneLine`.
 */
export function printable(text: string, options: { oneLine?: boolean; unicode?: boolean } = {}): string {
  const { oneLine = false, unicode = true } = options;
  return text.replace(/[\p{Cc}\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu, (character) => {
    if (character === '\n') return oneLine ? (unicode ? '⏎' : '\\n') : character;
    if (character === '\t') return oneLine ? ' ' : character;
    if (character === '\r') return '';
    const code = character.charCodeAt(0);
    return unicode && code < 0x20 ? String.fromCharCode(0x2400 + code) : `\\u${code.toString(16).padStart(4, '0')}`;
  });
}

/** Joins pieces with a gap, starting a new line where the next one would not fit. */
export function flow(pieces: readonly string[], width: number, gap = '   '): string[] {
  const lines: string[] = [];
  for (const piece of pieces) {
    const last = lines.at(-1);
    if (last !== undefined && displayWidth(last) + gap.length + displayWidth(piece) <= width) {
      lines[lines.length - 1] = last + gap + piece;
    } else {
      lines.push(truncate(piece, width));
    }
  }
  return lines;
}
