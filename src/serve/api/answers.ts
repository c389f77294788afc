/** Answers as the chat API has them: what is said, and what is called. */
import { CallReader, type CallSyntax, type Said } from '../../infer/text/calls.ts';
import { newId } from '../http/ids.ts';
import type { TextPiece } from '../models/generation.ts';
import { characters, type ScoredToken } from '../models/token-log.ts';
import type { Made } from './choices.ts';

/** An answer that was ended by its calls says so; one that ran out of tokens says that. */
export const finishOf = (reason: string, called: boolean): string =>
  called && reason === 'stop' ? 'tool_calls' : reason;

export interface AnswerDelta {
  readonly delta: object;
  readonly tokens: readonly ScoredToken[];
}

/** An answer as it comes. */
export class AnswerStream {
  private readonly reader: CallReader | null;
  /** Tokens whose text has not gone out, and characters of text that have. */
  private waiting: ScoredToken[] = [];
  private written = 0;

  constructor(calls: CallSyntax | null) {
    this.reader = calls && new CallReader(calls);
  }

  get called(): boolean {
    return (this.reader?.calls ?? 0) > 0;
  }

  push({ text, tokens }: TextPiece): AnswerDelta[] {
    if (!this.reader) return [{ delta: { content: text }, tokens }];
    this.waiting.push(...tokens);
    return this.reader.push(text).map((said) => this.delta(said));
  }

  end(): AnswerDelta[] {
    return (this.reader?.end() ?? []).map((said) => this.delta(said));
  }

  private delta(said: Said): AnswerDelta {
    if (said.kind === 'text') {
      this.written += characters(said.text);
      const tokens = this.waiting.filter((t) => t.offset < this.written);
      this.waiting = this.waiting.slice(tokens.length);
      return { delta: { content: said.text }, tokens };
    }
    const { index } = said;
    const call =
      said.kind === 'call'
        ? { index, id: newId('call_'), type: 'function', function: { name: said.name, arguments: '' } }
        : { index, function: { arguments: said.text } };
    return { delta: { tool_calls: [call] }, tokens: [] };
  }
}

interface ToolCall {
  readonly id: string;
  readonly type: 'function';
  readonly function: { readonly name: string; arguments: string };
}

/** A whole answer as a message, with the tokens of what it says. */
export function answerOf(
  { text, tokens }: Made,
  syntax: CallSyntax | null,
): { message: object; tokens: readonly ScoredToken[]; called: boolean } {
  if (!syntax) return { message: { role: 'assistant', content: text, refusal: null }, tokens, called: false };
  const reader = new CallReader(syntax);
  let content = '';
  const calls: ToolCall[] = [];
  for (const said of [...reader.push(text), ...reader.end()]) {
    if (said.kind === 'text') content += said.text;
    else if (said.kind === 'arguments') calls[said.index].function.arguments += said.text;
    else calls.push({ id: newId('call_'), type: 'function', function: { name: said.name, arguments: '' } });
  }
  const called = calls.length > 0;
  const written = characters(content);
  return {
    message: {
      ...{ role: 'assistant', content: called && content === '' ? null : content, refusal: null },
      ...(called && { tool_calls: calls }),
    },
    tokens: tokens.filter((t) => t.offset < written),
    called,
  };
}
