/** Text between a prompt and a suffix, for models that were trained to fill holes. */

import { putTokens, startOf } from '../../infer/prompt.ts';
import type { Prompt } from '../../objectives/index.ts';
import { FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, fimPrompt } from '../../tricks/fim/fim.ts';
import { sentinelToken } from '../../tricks/ul2/specials.ts';
import { badRequest } from '../http/errors.ts';
import type { ServedModel } from '../models/served.ts';

export function infillPrompt(model: ServedModel, prefix: readonly number[], suffix: readonly number[]): Prompt {
  const { tokenizer, vocabulary, opened } = model;
  const id = (name: string): number | undefined => tokenizer.specialIds.get(name);
  const [before, after, middle] = [FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE].map(id);
  if (!model.reads && before !== undefined && after !== undefined && middle !== undefined) {
    const ids = { prefix: before, suffix: after, middle, end: tokenizer.eot };
    const decoder = [...startOf(tokenizer), ...fimPrompt(prefix, suffix, ids, 'psm')];
    return { decoder, stop: [], never: [before, after, middle] };
  }
  const [hole, next] = [id(sentinelToken(0)), id(sentinelToken(1))];
  if (opened.config.objective.kind === 'ul2' && hole !== undefined) {
    // A hole is a masked span: the answer names it, and ends where the next one would begin.
    const options = { mode: 'R' };
    const put = putTokens(
      tokenizer,
      vocabulary,
      opened.objective,
      Number.POSITIVE_INFINITY,
      [...prefix, hole, ...suffix],
      options,
    );
    return { ...put, decoder: [...put.decoder, hole], stop: [...put.stop, ...(next === undefined ? [] : [next])] };
  }
  throw badRequest(
    "This model was not trained to fill in text before a suffix (objectives 'fim' and 'ul2' are).",
    'suffix',
  );
}
