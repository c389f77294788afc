/** POST /v1/chat/completions. */
import { jsonBody } from '../http/body.ts';
import { badRequest } from '../http/errors.ts';
import { type Ctx, cutOff, type Limited } from '../http/exchange.ts';
import { newId, seconds } from '../http/ids.ts';
import type { EventStream } from '../http/sse.ts';
import type { Registry } from '../models/registry.ts';
import type { ScoredToken } from '../models/token-log.ts';
import { chatAsk } from './asks.ts';
import { Choices, finishReason, whole } from './choices.ts';
import { type ChatLogprobs, chatLogprobs } from './logprobs.ts';
import { type ChatRequest, chatSchema } from './schema.ts';
import { streamed } from './streamed.ts';

/** Tools are described to a model at most: what must be a call cannot be promised. */
function checkTools({ tools, tool_choice: choice }: ChatRequest): void {
  if (!tools || tools.length === 0) return;
  if (choice === 'required' || (typeof choice === 'object' && choice !== null))
    throw badRequest("Forcing a tool call is not supported; use response_format 'json_schema'.", 'tool_choice');
}

export async function chatCompletions(c: Ctx, registry: Registry, limits: Limited): Promise<Response> {
  const r = await jsonBody(c, chatSchema, limits.maxBody);
  checkTools(r);
  const choices = await Choices.begin(c, registry, r.model, ({ model }) => ({
    prompts: [chatAsk(model, r)],
    each: r.n ?? 1,
    seed: r.seed,
  }));
  const { model } = choices.lease;
  const common = { created: seconds(), model: r.model, system_fingerprint: model.fingerprint };
  const head = { id: newId('chatcmpl-'), ...common };
  const logprobs = (tokens: readonly ScoredToken[]): ChatLogprobs | null =>
    r.logprobs ? chatLogprobs(model.tokenizer, tokens) : null;
  c.get('meter').stream = r.stream === true;
  if (r.stream) return stream(c, choices, r, head, logprobs);
  try {
    const made = await whole(choices, r.n ?? 1);
    if (c.get('gone').aborted) return cutOff(c);
    const body = {
      ...{ id: head.id, object: 'chat.completion', ...common },
      choices: made.map(({ text, tokens, reason }, index) => ({
        index,
        message: { role: 'assistant', content: text, refusal: null },
        logprobs: logprobs(tokens),
        finish_reason: reason,
      })),
      usage: choices.tally.usage(),
    };
    return c.json(body, 200, choices.headers);
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
): Promise<Response> {
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
    if (piece) {
      const delta = { content: piece.text };
      await out.send(chunk([{ index, delta, logprobs: logprobs(piece.tokens), finish_reason: null }]));
    } else if (end) await out.send(chunk([{ index, delta: {}, logprobs: null, finish_reason: finishReason(end) }]));
    else if (r.stream_options?.include_usage) await out.send({ ...chunk([]), usage: choices.tally.usage() });
  });
}
