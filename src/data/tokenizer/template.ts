/** The tokens that a tokenizer.json's post_processor puts around a text (a BOS token, say). */
import type { AddedToken } from './format.ts';
import { bad, isObject, show } from './json.ts';

export interface Template {
  before: number[];
  after: number[];
}

export function parseTemplate(processor: unknown, vocab: Map<string, number>, added: AddedToken[]): Template {
  const ids = new Map([...vocab, ...added.map((token): [string, number] => [token.content, token.id])]);
  const idOf = (token: unknown): number =>
    ids.get(token as string) ?? bad(`the post_processor names ${show(token)}, which is not in the vocabulary`);
  const around = (value: unknown): number[] => [idOf(Array.isArray(value) ? value[0] : value)];

  const parse = (step: unknown): Template => {
    if (step === undefined || step === null) return { before: [], after: [] };
    if (!isObject(step)) bad(`the post_processor is ${show(step)}, not an object`);
    switch (step.type) {
      case 'ByteLevel':
        return { before: [], after: [] };
      case 'RobertaProcessing':
      case 'BertProcessing':
        return { before: around(step.cls), after: around(step.sep) };
      case 'Sequence': {
        if (!Array.isArray(step.processors)) bad('a Sequence post_processor has no list of processors');
        // Each step wraps what the steps before it made.
        return step.processors.map(parse).reduce(
          (inner, outer) => ({
            before: [...outer.before, ...inner.before],
            after: [...inner.after, ...outer.after],
          }),
          { before: [], after: [] },
        );
      }
      case 'TemplateProcessing': {
        const template: Template = { before: [], after: [] };
        let side = template.before;
        if (!Array.isArray(step.single)) bad('a TemplateProcessing post_processor has no single template');
        for (const piece of step.single) {
          if (isObject(piece) && isObject(piece.Sequence)) side = template.after;
          else if (isObject(piece) && isObject(piece.SpecialToken)) side.push(idOf(piece.SpecialToken.id));
          else bad(`the post_processor holds ${show(piece)}`);
        }
        return template;
      }
      default:
        return bad(`the post_processor ${show(step.type)} is not supported`);
    }
  };
  return parse(processor);
}
