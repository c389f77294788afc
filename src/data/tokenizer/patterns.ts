/** Pre-tokenisation patterns: the named ones, and which regular expressions the native scanners implement. */

/** How the native encoder and trainer cut text; the numbers are `Pattern::Kind` in native/text/pattern.h. */
export interface NativePattern {
  kind: 0 | 1 | 2;
  maxDigits: number;
  ignoreCase: boolean;
}

export const WHOLE: NativePattern = { kind: 0, maxDigits: 0, ignoreCase: false };
export const GPT2: NativePattern = { kind: 1, maxDigits: 0, ignoreCase: false };

const cl100k = (digits: string) =>
  `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
const gpt2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/** Names that `Tokenizer.train` takes for `pattern`. */
export const NAMED_PATTERNS: Readonly<Record<string, string>> = {
  /** OpenAI cl100k as Llama 3 spells it: digits in groups of at most three. */
  cl100k: cl100k('{1,3}'),
  /** The same with one digit a piece. */
  qwen2: cl100k(''),
  gpt2,
};

// The spellings of cl100k in use. Possessive quantifiers and "\s*[\r\n]" for "\s*[\r\n]+" match the same pieces here:
// what follows each of them cannot match what it gave back.
const CONTRACTIONS = /'s\|'t\|'re\|'ve\|'m\|'ll\|'d/.source;
const CL100K_SPELLINGS = new RegExp(
  [
    `^(?:\\(\\?i:${CONTRACTIONS}\\)|'\\(\\?i:\\[sdmt\\]\\|ll\\|ve\\|re\\)|${CONTRACTIONS})`,
    /\[\^\\r\\n\\p\{L\}\\p\{N\}\]\?\+?\\p\{L\}\+/.source,
    /\\p\{N\}(\{1,\d\}|\+)?/.source,
    / \?\[\^\\s\\p\{L\}\\p\{N\}\]\+\+?\[\\r\\n\]\*/.source,
    /\\s\*\[\\r\\n\]\+?/.source,
    /\\s\+\(\?!\\S\)/.source,
    /\\s\+$/.source,
  ].join('\\|'),
);

/** The native scanner that cuts as this regular expression does, if there is one. */
export function nativePattern(regex: string): NativePattern | undefined {
  if (regex === gpt2) return GPT2;
  const match = CL100K_SPELLINGS.exec(regex);
  if (!match) return undefined;
  const digits = match[1];
  const maxDigits = digits === undefined ? 1 : digits === '+' ? 0xffffffff : Number(digits[3]);
  return { kind: 2, maxDigits, ignoreCase: regex.includes('(?i:') };
}
