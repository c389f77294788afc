/** A streaming client of /v1/completions on Node's own HTTP client: little work a token, since it shares the machine. */
import { type Agent, request } from 'node:http';
import type { Ask } from './work.ts';

/** What came of a request; times are of performance.now(). */
export interface Answer {
  /** When it was meant to be sent: a client that is late does not make a server look early. */
  readonly due: number;
  readonly first: number;
  readonly last: number;
  /** When each piece of text came. */
  readonly pieces: readonly number[];
  readonly tokens: number;
  readonly promptTokens: number;
  readonly cachedTokens: number;
  /** Null: complete, with as many tokens as asked for. */
  readonly wrong: string | null;
}

/** Splits a stream of server-sent events into the data of each (HTML standard, 9.2.6). */
export class EventParser {
  private held = '';
  private data: string[] = [];
  private readonly onData: (data: string) => void;

  constructor(onData: (data: string) => void) {
    this.onData = onData;
  }

  push(text: string): void {
    this.held += text;
    let at = 0;
    for (;;) {
      let end = at;
      while (end < this.held.length && this.held[end] !== '\n' && this.held[end] !== '\r') end++;
      // A carriage return at the end may be half of a line's end.
      if (end === this.held.length || (this.held[end] === '\r' && end + 1 === this.held.length)) break;
      this.line(this.held.slice(at, end));
      at = end + (this.held[end] === '\r' && this.held[end + 1] === '\n' ? 2 : 1);
    }
    this.held = this.held.slice(at);
  }

  private line(line: string): void {
    if (line === '') {
      if (this.data.length > 0) this.onData(this.data.join('\n'));
      this.data = [];
    } else if (line.startsWith('data:')) this.data.push(line.slice(line[5] === ' ' ? 6 : 5));
  }
}

interface Chunk {
  readonly choices?: readonly { readonly text: string; readonly finish_reason: string | null }[];
  readonly usage?: {
    readonly prompt_tokens: number;
    readonly completion_tokens: number;
    readonly prompt_tokens_details?: { readonly cached_tokens?: number };
  } | null;
  readonly error?: { readonly message: string };
}

export interface Endpoint {
  readonly url: string;
  readonly model: string;
  readonly temperature: number;
}

/** Asks, and settles when the answer has ended, however it has. */
export function ask(agent: Agent, to: Endpoint, { prompt, maxTokens }: Ask, due: number): Promise<Answer> {
  const { model, temperature } = to;
  const body = JSON.stringify({
    ...{ model, prompt, temperature, max_tokens: maxTokens, seed: 1 },
    ...{ stream: true, stream_options: { include_usage: true } },
  });
  return new Promise((resolve) => {
    const pieces: number[] = [];
    let [tokens, promptTokens, cachedTokens] = [0, 0, 0];
    let [reason, complete, over]: [string | null, boolean, boolean] = [null, false, false];
    const end = (error: string | null): void => {
      if (over) return;
      over = true;
      const short = tokens === maxTokens ? null : `${tokens} of ${maxTokens} tokens`;
      const wrong = error ?? (complete ? (reason === 'length' ? short : `it ended with ${reason}`) : 'no [DONE]');
      const now = performance.now();
      const [first, last] = [pieces[0] ?? now, pieces[pieces.length - 1] ?? now];
      resolve({ due, first, last, pieces, tokens, promptTokens, cachedTokens, wrong });
    };
    const parser = new EventParser((data) => {
      if (data === '[DONE]') {
        complete = true;
        return;
      }
      const { choices = [], usage, error } = JSON.parse(data) as Chunk;
      if (error) return end(error.message);
      if (choices[0]?.text) pieces.push(performance.now());
      reason = choices[0]?.finish_reason ?? reason;
      if (!usage) return;
      [tokens, promptTokens] = [usage.completion_tokens, usage.prompt_tokens];
      cachedTokens = usage.prompt_tokens_details?.cached_tokens ?? 0;
    });
    const headers = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) };
    const out = request(`${to.url}/v1/completions`, { method: 'POST', agent, headers }, (response) => {
      response.setEncoding('utf8');
      let refusal = '';
      response.on('data', (text: string) => {
        if (response.statusCode === 200) parser.push(text);
        else refusal += text;
      });
      response.on('end', () => end(response.statusCode === 200 ? null : `${response.statusCode} ${refusal}`));
      response.on('error', (e) => end(e.message));
    });
    out.on('error', (e) => end(e.message));
    out.end(body);
  });
}
