/**
 * Calls of functions as text. A syntax is what stands around a function's name and its arguments, a JSON object; whoever
 * writes is held to it from its first word on (grammar/calls.ts), so a reader need not guess.
 */
export interface CallSyntax {
  /** Where a call begins, and the first part of `begin`: until then there is ordinary text. */
  readonly trigger: string;
  /** The trigger is no more than JSON: it means a call only where an answer begins. */
  readonly atStart: boolean;
  readonly begin: string;
  /** Between name and arguments. */
  readonly middle: string;
  readonly end: string;
  /** Between two calls; null: an answer has one call at most. */
  readonly between: string | null;
}

/** What many open models speak (Nous Research's Hermes, Qwen), and what models without a template are told to. */
export const HERMES: CallSyntax = {
  trigger: '<tool_call>',
  atStart: false,
  begin: '<tool_call>\n{"name": "',
  middle: '", "arguments": ',
  end: '}\n</tool_call>',
  between: '\n',
};

export interface Call {
  readonly name: string;
  /** JSON. */
  readonly arguments: string;
}

export const callText = ({ begin, middle, end }: CallSyntax, { name, arguments: json }: Call): string =>
  `${begin}${name}${middle}${json}${end}`;

/** What has become certain of an answer. */
export type Said =
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'call'; readonly index: number; readonly name: string }
  | { readonly kind: 'arguments'; readonly index: number; readonly text: string };

/** Reads an answer as it comes. Text that may still turn out to begin a call is held back, and white space before one. */
export class CallReader {
  private readonly syntax: CallSyntax;
  private held = '';
  private wrote = false;
  private place: 'text' | 'begin' | 'name' | 'middle' | 'arguments' | 'end' = 'text';
  private expected = '';
  private name = '';
  private depth = 0;
  private quoted = false;
  private escaped = false;
  /** Calls whose names are known. */
  calls = 0;

  constructor(syntax: CallSyntax) {
    this.syntax = syntax;
  }

  push(text: string): Said[] {
    if (this.place !== 'text') return this.read(text);
    const { trigger, atStart } = this.syntax;
    const all = this.held + text;
    const at = all.indexOf(trigger);
    if (at >= 0 && !(atStart && (this.wrote || all.slice(0, at).trim() !== ''))) {
      const before = all.slice(0, at).trimEnd();
      this.held = '';
      this.expect('begin', this.syntax.begin.slice(trigger.length));
      return [...this.say(before), ...this.read(all.slice(at + trigger.length))];
    }
    const may = !(atStart && (this.wrote || all.trim().length > trigger.length));
    let keep = may ? beginning(all, trigger) : 0;
    if (may) while (keep < all.length && /\s/.test(all[all.length - keep - 1])) keep++;
    this.held = all.slice(all.length - keep);
    return this.say(all.slice(0, all.length - keep));
  }

  /** The answer has ended. */
  end(): Said[] {
    const rest = this.held;
    this.held = '';
    return this.say(rest);
  }

  private say(text: string): Said[] {
    if (text === '') return [];
    this.wrote = true;
    return [{ kind: 'text', text }];
  }

  private expect(place: 'begin' | 'middle' | 'end', text: string): void {
    [this.place, this.expected] = [place, text];
  }

  /** Inside of calls: every character is known to be where it belongs. */
  private read(text: string): Said[] {
    const said: Said[] = [];
    let json = '';
    const give = (): void => {
      if (json !== '') said.push({ kind: 'arguments', index: this.calls - 1, text: json });
      json = '';
    };
    for (const c of text) {
      this.pass();
      if (this.place === 'name') {
        if (c === this.syntax.middle[0]) {
          said.push({ kind: 'call', index: this.calls++, name: this.name });
          this.expect('middle', this.syntax.middle.slice(1));
        } else this.name += c;
      } else if (this.place === 'arguments') {
        json += c;
        if (this.closes(c)) {
          give();
          this.expect('end', this.syntax.end);
        }
      } else this.expected = this.expected.slice(c.length);
    }
    give();
    return said;
  }

  /** Goes on to the next part once all of a fixed one has come. */
  private pass(): void {
    if (this.expected !== '') return;
    if (this.place === 'begin') [this.place, this.name] = ['name', ''];
    else if (this.place === 'middle') [this.place, this.depth] = ['arguments', 0];
    else if (this.place === 'end') this.expect('begin', `${this.syntax.between ?? ''}${this.syntax.begin}`);
  }

  /** Whether a character ends the object of arguments. */
  private closes(c: string): boolean {
    if (this.escaped) this.escaped = false;
    else if (this.quoted) {
      if (c === '\\') this.escaped = true;
      else if (c === '"') this.quoted = false;
    } else if (c === '"') this.quoted = true;
    else if (c === '{') this.depth++;
    else if (c === '}') return --this.depth === 0;
    return false;
  }
}

/** Length of the longest end of `text` that begins `word`. */
function beginning(text: string, word: string): number {
  for (let n = Math.min(word.length - 1, text.length); n > 0; n--) if (text.endsWith(word.slice(0, n))) return n;
  return 0;
}
