/** POST /v1/chat/completions. */
import type { CallSyntax } from '../../infer/text/calls.ts';
import { jsonBody } from '../http/body.ts';
import { type Ctx, cutOff, type Limited } from '../http/exchange.ts';
import { newId, seconds } from '../http/ids.ts';
import type { EventStream } from '../http/sse.ts';
import type { Registry } from '../models/registry.ts';
import type { ScoredToken } from '../models/token-log.ts';
import { type AnswerDelta, AnswerStream, answerOf, finishOf } from './answers.ts';
import { chatAsk } from './asks.ts';
import { Choices, finishReason, whole } from './choices.ts';
import { type ChatLogprobs, chatLogprobs } from './logprobs.ts';
import { type ChatRequest, chatSchema } from './schema.ts';
import { streamed } from './streamed.ts';

export async function chatCompletions(c: Ctx, registry: Registry, limits: Limited): Promise<Response> {
  const r = await jsonBody(c, chatSchema, limits.maxBody);
  let calls: CallSyntax | null = null;
  const choices = await Choices.begin(c, registry, r.model, ({ model }) => {
    const ask = chatAsk(model, r);
    calls = ask.calls;
    return { prompts: [ask], each: r.n ?? 1, seed: r.seed };
  });
  const { model } = choices.lease;
  const common = { created: seconds(), model: r.model, system_fingerprint: model.fingerprint };
  const head = { id: newId('chatcmpl-'), ...common };
  const logprobs = (tokens: readonly ScoredToken[]): ChatLogprobs | null =>
    r.logprobs ? chatLogprobs(model.tokenizer, tokens) : null;
  c.get('meter').stream = r.stream === true;
  if (r.stream) return stream(c, choices, r, head, logprobs, calls);
  try {
    const made = await whole(choices, r.n ?? 1);
    if (c.get('gone').aborted) return cutOff(c);
    const body = {
      ...{ id: head.id, object: 'chat.completion', ...common },
      choices: made.map((m, index) => {
        const { message, tokens, called } = answerOf(m, calls);
        return { index, message, logprobs: logprobs(tokens), finish_reason: finishOf(m.reason, called) };
      }),
      usage: choices.tally.usage(),
    };
    return c.json(body);
  } finally {
    choices.close();
  }
}

async function stream(
  c: Ctx,
  choices: Choices,
  r: ChatRequest,
  { id, ...common }: { id: string; created: number; model: string; system_fingerprint: string },
  logprobs: (tokens: readonly ScoredToken[]) => ChatLogprobs | null,
  calls: CallSyntax | null,
): Promise<Response> {
  const answers = Array.from({ length: r.n ?? 1 }, () => new AnswerStream(calls));
  const usage = r.stream_options?.include_usage ? { usage: null } : {};
  const chunk = (list: readonly object[]): object => ({
    ...{ id, object: 'chat.completion.chunk', ...common },
    ...{ choices: list, ...usage },
  });
  const begin = async (out: EventStream): Promise<void> => {
    for (let index = 0; index < (r.n ?? 1); index++)
      await out.send(
        chunk([{ index, delta: { role: 'assistant', content: '' }, logprobs: null, finish_reason: null }]),
      );
  };
  return streamed(c, choices, begin, async (out, { index, piece, end }) => {
    const say = async (deltas: readonly AnswerDelta[]): Promise<void> => {
      for (const { delta, tokens } of deltas)
        await out.send(chunk([{ index, delta, logprobs: logprobs(tokens), finish_reason: null }]));
    };
    if (piece) await say(answers[index].push(piece));
    else if (end) {
      await say(answers[index].end());
      const finish = finishOf(finishReason(end), answers[index].called);
      await out.send(chunk([{ index, delta: {}, logprobs: null, finish_reason: finish }]));
    } else if (r.stream_options?.include_usage) await out.send({ ...chunk([]), usage: choices.tally.usage() });
  });
}
