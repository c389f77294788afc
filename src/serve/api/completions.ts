/** POST /v1/completions: any prompt continued; its own tokens scored, for programs that evaluate models. */
import { largest, logSumExp } from '../../infer/sampling/index.ts';
import { jsonBody } from '../http/body.ts';
import { badRequest } from '../http/errors.ts';
import { type Ctx, cutOff, type Limited } from '../http/exchange.ts';
import { newId, seconds } from '../http/ids.ts';
import type { Ask } from '../models/generation.ts';
import type { Registry } from '../models/registry.ts';
import type { ServedModel } from '../models/served.ts';
import { characters, type ScoredToken, TokenLog } from '../models/token-log.ts';
import { completionAsk, type PromptAsk, promptsOf } from './asks.ts';
import { Choices, finishReason, type Made, whole } from './choices.ts';
import { completionLogprobs } from './logprobs.ts';
import { type CompletionRequest, completionSchema } from './schema.ts';
import { streamed } from './streamed.ts';

const MAX_PROMPTS = 2048;
/** Continuations of one request. */
const MAX_CHOICES = 4096;

/** The tokens of an echoed prompt with their log-probabilities, which come one after the other. */
class EchoLog {
  private readonly scores = new Map<number, { logprob: number; top: { token: number; logprob: number }[] }>();
  private readonly hidden: number;
  private readonly count: number;

  constructor(prompt: PromptAsk, logprobs: number) {
    [this.hidden, this.count] = [prompt.hidden, logprobs];
  }

  /** Place 0 is that of the first token that the model read. */
  readonly score: NonNullable<Ask['scorePrompt']> = (token, place, logits) => {
    const scale = logSumExp(logits);
    const top = Array.from(largest(logits, this.count), (t) => ({ token: t, logprob: logits[t] - scale }));
    this.scores.set(place, { logprob: logits[token] - scale, top });
  };

  tokens(model: ServedModel, prompt: PromptAsk): ScoredToken[] {
    const log = new TokenLog(model.tokenizer);
    prompt.echoed.forEach((token, k) => {
      const { logprob = null, top = [] } = this.scores.get(k + this.hidden) ?? {};
      log.push({ token, logprob, top });
    });
    return log.end(false);
  }
}

/** Mean log-probability: what the best of several is chosen by. */
const meanOf = ({ tokens }: Made): number =>
  tokens.length === 0 ? Number.NEGATIVE_INFINITY : tokens.reduce((n, t) => n + (t.logprob ?? 0), 0) / tokens.length;

export async function completions(c: Ctx, registry: Registry, limits: Limited): Promise<Response> {
  const r = await jsonBody(c, completionSchema, limits.maxBody);
  const prompts = promptsOf(r);
  const n = r.n ?? 1;
  const bestOf = r.best_of ?? n;
  if (bestOf < n) throw badRequest("'best_of' must be at least 'n'", 'best_of');
  if (r.stream && bestOf > n) throw badRequest("'best_of' cannot be streamed", 'best_of');
  if (prompts.length > MAX_PROMPTS || prompts.length * bestOf > MAX_CHOICES)
    throw badRequest(`A request may have ${MAX_PROMPTS} prompts and ${MAX_CHOICES} choices.`, 'prompt');
  let asks: PromptAsk[] = [];
  let echoes: EchoLog[] = [];
  const choices = await Choices.begin(c, registry, r.model, ({ model }) => {
    asks = prompts.map((p) => completionAsk(model, r, p));
    echoes = asks.flatMap((a) => Array.from({ length: bestOf }, () => new EchoLog(a, r.logprobs ?? 0)));
    const scored = (ask: Ask): Ask =>
      bestOf > n ? { ...ask, sampling: { ...ask.sampling, logprobs: r.logprobs ?? 0 } } : ask;
    return {
      prompts: asks.map(({ ask, text }) => ({ ...scored(ask), offset: r.echo ? characters(text) : 0 })),
      each: bestOf,
      seed: r.seed,
      ...(r.echo && r.logprobs !== undefined && { scorer: (index: number) => echoes[index].score }),
    };
  });
  const { model } = choices.lease;
  const head = { id: newId('cmpl-'), object: 'text_completion', created: seconds(), model: r.model };
  const common = { ...head, system_fingerprint: model.fingerprint };
  const logprobs = (tokens: readonly ScoredToken[]) =>
    r.logprobs === undefined ? null : completionLogprobs(model.tokenizer, tokens);
  /** What stands before a continuation when the prompt is echoed. */
  const echoOf = (index: number): { text: string; tokens: ScoredToken[] } => {
    const prompt = asks[Math.floor(index / bestOf)];
    if (!r.echo) return { text: '', tokens: [] };
    return { text: prompt.text, tokens: r.logprobs === undefined ? [] : echoes[index].tokens(model, prompt) };
  };
  c.get('meter').stream = r.stream === true;
  if (r.stream) return stream(c, choices, r, common, logprobs, echoOf);
  try {
    const made = await whole(choices, prompts.length * bestOf);
    if (c.get('gone').aborted) return cutOff(c);
    const chosen = prompts.flatMap((_, p) => {
      const all = made.slice(p * bestOf, (p + 1) * bestOf).map((m, k) => ({ ...m, at: p * bestOf + k }));
      return (bestOf > n ? all.sort((a, b) => meanOf(b) - meanOf(a)) : all).slice(0, n);
    });
    const list = chosen.map(({ text, tokens, reason, at }, index) => {
      const echo = echoOf(at);
      const all = logprobs([...echo.tokens, ...tokens]);
      return { text: echo.text + text, index, logprobs: all, finish_reason: reason };
    });
    return c.json({ ...common, choices: list, usage: choices.tally.usage() });
  } finally {
    choices.close();
  }
}

function stream(
  c: Ctx,
  choices: Choices,
  r: CompletionRequest,
  common: object,
  logprobs: (tokens: readonly ScoredToken[]) => object | null,
  echoOf: (index: number) => { text: string; tokens: ScoredToken[] },
): Promise<Response> {
  const usage = r.stream_options?.include_usage ? { usage: null } : {};
  const chunk = (list: readonly object[]): object => ({ ...common, choices: list, ...usage });
  const echoed = new Set<number>();
  return streamed(
    c,
    choices,
    async () => {},
    async (out, { index, piece, end }) => {
      if (index < 0) {
        if (r.stream_options?.include_usage) await out.send({ ...chunk([]), usage: choices.tally.usage() });
        return;
      }
      if (r.echo && !echoed.has(index)) {
        const { text, tokens } = echoOf(index);
        await out.send(chunk([{ text, index, logprobs: logprobs(tokens), finish_reason: null }]));
      }
      echoed.add(index);
      const { text, tokens } = piece ?? { text: '', tokens: [] };
      const finish = end ? finishReason(end) : null;
      await out.send(chunk([{ text, index, logprobs: logprobs(tokens), finish_reason: finish }]));
    },
  );
}
