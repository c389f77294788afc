/**
 * The chat template that came with an imported model. What it is like is found out by trying: a short dialogue tells what
 * ends an answer, one with a call tells how calls are written, and whether tools are described at all.
 */
import { AnsatzError } from '../../backend/errors.ts';
import type { Tokenizer } from '../../data/tokenizer/index.ts';
import type { ChatFiles } from '../../infer/formats/chat-files.ts';
import { startOf } from '../../infer/prompt.ts';
import { type CallSyntax, HERMES } from '../../infer/text/calls.ts';
import { ApiError, badRequest } from '../http/errors.ts';
import { syntaxOf } from './call-syntax.ts';
import type { ChatTemplate, Part, Turn } from './chat-template.ts';
import { JinjaProgram, type Rendered } from './jinja-program.ts';
import { addedTokens, MarkedText } from './marked-text.ts';
import { type Tool, withTools } from './tools.ts';

const USER = 'first question';
const ANSWER = 'first answer';
const NEXT = 'second question';

export class JinjaTemplate implements ChatTemplate {
  readonly name = 'jinja';
  readonly whole = true;
  readonly stop: readonly number[];
  readonly stopStrings: readonly string[];
  readonly calls: CallSyntax;
  private readonly tokenizer: Tokenizer;
  private readonly marked: MarkedText;
  private readonly plain: JinjaProgram;
  /** For dialogues with tools; null: it has no words for them, so they are described as text. */
  private readonly tooled: JinjaProgram | null;

  /** @throws AnsatzError when the template cannot be used. */
  constructor(tokenizer: Tokenizer, { templates, tokens, ends }: ChatFiles) {
    this.tokenizer = tokenizer;
    const added = addedTokens(tokenizer);
    this.marked = new MarkedText(added);
    const program = (source: string): JinjaProgram => new JinjaProgram(source, tokens, added);
    const [source, special] = [templates.get('default') ?? [...templates.values()][0], templates.get('tool_use')];
    this.plain = program(source);
    const { tail, last } = this.trial();
    const eos = tokenizer.specialIds.get(tokens.eos_token);
    // One that ends an answer with a token never goes on to somebody else's words.
    const stop = [last, eos, ...ends].filter((id): id is number => id !== null && id !== undefined);
    this.stop = [...new Set(stop)].filter((id) => id < tokenizer.vocabSize && id !== tokenizer.eot);
    this.stopStrings = last === null && tail.trim() !== '' ? [tail] : [];
    const tooled = special === undefined ? this.plain : program(special);
    const found = syntaxOf(tooled, (text) => text.slice(0, this.stopIn(text)?.at));
    this.calls = found ?? HERMES;
    this.tooled = found ? tooled : null;
  }

  render(turns: readonly Turn[], open: boolean, tools: readonly Tool[] = []): Part[] {
    const made = this.run(turns, open, tools);
    if (open) return [{ ids: this.encode(made), answer: false }];
    return this.answers(made, turns, tools);
  }

  private run(turns: readonly Turn[], open: boolean, tools: readonly Tool[]): Rendered {
    if (this.tooled) {
      const uses = tools.length > 0 || turns.some((t) => t.role === 'tool' || (t.calls?.length ?? 0) > 0);
      return (uses ? this.tooled : this.plain).run(turns, open, tools);
    }
    // A result is told by the user: who else there may be is for the template to say.
    const told = withTools(turns, tools, HERMES).map((t): Turn => {
      if (t.role !== 'tool') return t;
      return { role: 'user', text: `<tool_response>\n${t.text}\n</tool_response>` };
    });
    return this.plain.run(told, open, []);
  }

  /** Tokens of what was rendered; control tokens where the template wrote them, text everywhere else. */
  private encode({ text, disguise }: Rendered): number[] {
    return this.marked.cut(text).flatMap((cut) => {
      const plain = disguise.show(cut.text);
      const ids = plain === '' ? [] : [...this.tokenizer.encode(plain, { special: 'text' })];
      return cut.token === null ? ids : [...ids, cut.token];
    });
  }

  /** A whole dialogue in parts: each answer with the token that ends it is said, the rest is given. */
  private answers(made: Rendered, turns: readonly Turn[], tools: readonly Tool[]): Part[] {
    const parts: Part[] = [];
    const part = (text: string, answer: boolean): void => {
      if (text !== '' || answer) parts.push({ ids: this.encode({ text, disguise: made.disguise }), answer });
    };
    let at = 0;
    turns.forEach((turn, k) => {
      if (turn.role !== 'assistant') return;
      const before = this.run(turns.slice(0, k), true, tools);
      // Masks may differ where less is said.
      const asked = before.disguise.show(before.text);
      if (asked.length < at || !made.disguise.show(made.text).startsWith(asked))
        throw badRequest(
          `messages[${k}]: the model's chat template writes what comes before this answer otherwise once it has been given; end the example with it`,
        );
      const { end, stops } = this.endOf(made.text, asked.length);
      part(made.text.slice(at, asked.length), false);
      part(made.text.slice(asked.length, end), true);
      // Where nothing else would tell that it is over, the text ends.
      if (!stops) parts.push({ ids: [...parts.pop()!.ids, this.tokenizer.eot], answer: true });
      at = stops ? end : made.text.length;
    });
    part(made.text.slice(at), false);
    const start = startOf(this.tokenizer);
    // What begins a text stands before an example already.
    const first = parts[0]?.ids ?? [];
    const begun = start.every((id, k) => first[k] === id);
    return begun && parts.length > 0 ? [{ ...parts[0], ids: first.slice(start.length) }, ...parts.slice(1)] : parts;
  }

  /** The first token that ends an answer. */
  private stopIn(text: string): { at: number; end: number } | undefined {
    const ends = new Set([...this.stop, this.tokenizer.eot]);
    const cuts = this.marked.cut(text);
    const k = cuts.findIndex((c) => c.token !== null && ends.has(c.token));
    return k < 0 ? undefined : { at: (cuts[k - 1]?.end ?? 0) + cuts[k].text.length, end: cuts[k].end };
  }

  /**
   * Where an answer that begins at `from` ends: behind the token that ends it, or before what stands between turns.
   * `stops`: whether one of these comes.
   */
  private endOf(text: string, from: number): { end: number; stops: boolean } {
    const stop = this.stopIn(text.slice(from));
    if (stop) return { end: from + stop.end, stops: true };
    const [between] = this.stopStrings;
    const next = between === undefined ? -1 : text.indexOf(between, from);
    if (next >= 0) return { end: next, stops: true };
    // The last one may be followed by the beginning of that.
    let end = text.length;
    for (let n = Math.min(between?.length ?? 0, text.length - from); n > 0; n--)
      if (text.endsWith(between!.slice(0, n))) {
        end -= n;
        break;
      }
    return { end, stops: false };
  }

  /** What stands behind an answer, up to the next question; and the token that ends it. */
  private trial(): { tail: string; last: number | null } {
    try {
      this.plain.run([{ role: 'user', text: USER }], true, []);
      const { text } = this.plain.run(
        [
          { role: 'user', text: USER },
          { role: 'assistant', text: ANSWER },
          { role: 'user', text: NEXT },
        ],
        false,
        [],
      );
      const at = text.lastIndexOf(ANSWER);
      if (at < 0) throw new ApiError(400, 'it leaves answers out');
      const end = text.indexOf(NEXT, at);
      const tail = text.slice(at + ANSWER.length, end < 0 ? undefined : end);
      return { tail, last: this.marked.cut(tail)[0].token };
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      throw new AnsatzError(`its chat template fails on a short dialogue: ${error.message}`);
    }
  }
}
