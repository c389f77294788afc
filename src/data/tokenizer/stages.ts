/** The pre-tokenizer of a tokenizer.json as a list of stages, and the native scanner that equals it where one does. */
import { bad, isObject, type JsonObject, show } from './json.ts';
import { GPT2, type NativePattern, nativePattern, WHOLE } from './patterns.ts';
import { compileOniguruma, escapeLiteral } from './regex.ts';

export interface SplitStage {
  kind: 'split';
  regex: RegExp;
  /** Which pieces stay: matches and what lies between them, or only one of the two. */
  keep: 'both' | 'matches' | 'gaps';
  native: NativePattern | undefined;
}
/** Always the last stage. */
export interface ByteLevelStage {
  kind: 'byte-level';
  addPrefixSpace: boolean;
  /** Split by GPT-2's pattern as well. */
  split: boolean;
}
export type Stage = SplitStage | ByteLevelStage;

function parseSplit(stage: JsonObject): SplitStage {
  const { pattern, behavior, invert } = stage;
  const source = isObject(pattern) ? (pattern.Regex ?? pattern.String) : undefined;
  if (!isObject(pattern) || typeof source !== 'string')
    bad(`the Split pattern ${show(pattern)} is not a Regex or String`);
  if (behavior !== 'Isolated' && behavior !== 'Removed')
    bad(`the Split behaviour ${show(behavior)} is not supported, only Isolated and Removed`);
  const keep = behavior === 'Isolated' ? 'both' : invert === true ? 'matches' : 'gaps';
  const literal = pattern.Regex === undefined;
  try {
    const regex = literal ? new RegExp(escapeLiteral(source), 'gu') : compileOniguruma(source);
    return { kind: 'split', regex, keep, native: literal ? undefined : nativePattern(source) };
  } catch (error) {
    return bad(`the Split pattern ${show(source)} cannot be used: ${(error as Error).message}`);
  }
}

function parseStage(stage: unknown): Stage[] {
  if (!isObject(stage)) bad(`the pre_tokenizer ${show(stage)} is not an object`);
  switch (stage.type) {
    case 'Sequence':
      if (!Array.isArray(stage.pretokenizers)) bad('a Sequence pre_tokenizer has no list of pretokenizers');
      return stage.pretokenizers.flatMap(parseStage);
    case 'ByteLevel':
      // Hugging Face's defaults for the fields that old files leave out.
      return [
        { kind: 'byte-level', addPrefixSpace: stage.add_prefix_space !== false, split: stage.use_regex !== false },
      ];
    case 'Split':
      return [parseSplit(stage)];
    case 'Digits': {
      const regex = stage.individual_digits === true ? /\p{N}/gu : /\p{N}+/gu;
      return [{ kind: 'split', regex, keep: 'both', native: undefined }];
    }
    default:
      return bad(`the pre_tokenizer ${show(stage.type)} is not supported, only Split, Digits and ByteLevel`);
  }
}

export function parseStages(preTokenizer: unknown): Stage[] {
  const stages = preTokenizer === undefined || preTokenizer === null ? [] : parseStage(preTokenizer);
  if (stages.findIndex((stage) => stage.kind === 'byte-level') !== stages.length - 1 || stages.length === 0)
    bad('the pre_tokenizer does not end in ByteLevel, so this is not a byte-level BPE tokenizer');
  return stages;
}

/** The scanner that does all stages at once, and where it adds a missing space (see NativeEncoderSpec). */
export function nativeStages(stages: Stage[]): { pattern: NativePattern; prefix: 0 | 1 | 2 } | undefined {
  const last = stages.at(-1) as ByteLevelStage;
  if (stages.length === 1) return { pattern: last.split ? GPT2 : WHOLE, prefix: last.addPrefixSpace ? 1 : 0 };
  const first = stages[0];
  if (stages.length > 2 || last.split || first.kind !== 'split' || !first.native || first.keep === 'gaps')
    return undefined;
  return { pattern: first.native, prefix: last.addPrefixSpace ? 2 : 0 };
}
