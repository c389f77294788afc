/** From a request to what a model is asked: tokens, sampling, where it ends. */

import type { Drafter } from '../../infer/engine/index.ts';
import { putTokens, startOf } from '../../infer/prompt.ts';
import type { SamplerOptions } from '../../infer/sampling/index.ts';
import { PromptLookup } from '../../infer/speculation/prompt-lookup.ts';
import type { CallSyntax } from '../../infer/text/calls.ts';
import type { Prompt } from '../../objectives/index.ts';
import { badRequest } from '../http/errors.ts';
import type { Speaker, Turn } from '../models/chat-template.ts';
import type { Ask } from '../models/generation.ts';
import type { ServedModel } from '../models/served.ts';
import { type Tool, withTools } from '../models/tools.ts';
import { callingOf } from './calling.ts';
import { infillPrompt } from './infill.ts';
import type { ChatRequest, CompletionRequest, Content, Message } from './schema.ts';

type Sampled = Pick<
  ChatRequest,
  | 'temperature'
  | 'top_p'
  | 'top_k'
  | 'min_p'
  | 'presence_penalty'
  | 'frequency_penalty'
  | 'repetition_penalty'
  | 'logit_bias'
>;

export const textOf = (content: Content | undefined): string =>
  content === undefined ? '' : typeof content === 'string' ? content : content.map((p) => p.text).join('');

/** 32 bits of a seed of 64. */
export const foldSeed = (seed: number): number => {
  const high = Math.floor(seed / 2 ** 32);
  return ((seed - high * 2 ** 32) ^ Math.imul(high, 0x9e3779b9)) >>> 0;
};

/** The seed of choice k; the first has the request's own. */
export const choiceSeed = (seed: number, k: number): number => (seed ^ Math.imul(k, 0x85ebca6b)) >>> 0;

export const anySeed = (): number => Math.floor(Math.random() * 2 ** 32);

export function samplingOf(r: Sampled, model: ServedModel, logprobs: number | undefined): SamplerOptions {
  const bias = new Map<number, number>();
  for (const [id, value] of Object.entries(r.logit_bias ?? {})) {
    if (Number(id) >= model.tokenizer.vocabSize)
      throw badRequest(`'logit_bias': there is no token ${id}`, 'logit_bias');
    bias.set(Number(id), value);
  }
  return {
    temperature: r.temperature ?? 1,
    topP: r.top_p ?? 1,
    ...(r.top_k !== undefined && { topK: r.top_k }),
    ...(r.min_p !== undefined && { minP: r.min_p }),
    ...(r.presence_penalty !== undefined && { presencePenalty: r.presence_penalty }),
    ...(r.frequency_penalty !== undefined && { frequencyPenalty: r.frequency_penalty }),
    ...(r.repetition_penalty !== undefined && { repetitionPenalty: r.repetition_penalty }),
    ...(bias.size > 0 && { logitBias: bias }),
    ...(logprobs !== undefined && { logprobs }),
  };
}

export const stopsOf = (stop: string | readonly string[] | undefined): string[] =>
  stop === undefined ? [] : (typeof stop === 'string' ? [stop] : [...stop]).filter((s) => s.length > 0);

const speakerOf = (role: Message['role']): Speaker => (role === 'developer' ? 'system' : role);

export function turnsOf(messages: readonly Message[]): Turn[] {
  const names = new Map<string, string>();
  return messages.map(({ role, content, tool_calls: called, tool_call_id: id, name }, k) => {
    if (content === undefined && !called?.length) throw badRequest('must have content', `messages[${k}].content`);
    for (const c of called ?? []) if (c.id !== undefined) names.set(c.id, c.function.name);
    const calls = called?.map((c) => ({ ...(c.id !== undefined && { id: c.id }), ...c.function }));
    const function_ = name ?? (id === undefined ? undefined : names.get(id));
    return {
      ...{ role: speakerOf(role), text: textOf(content) },
      ...(role === 'assistant' && calls && calls.length > 0 && { calls }),
      ...(role === 'tool' && {
        answers: { ...(id !== undefined && { id }), ...(function_ !== undefined && { name: function_ }) },
      }),
    };
  });
}

/** Room for an answer: what was asked for, or what the context leaves. */
function roomFor(model: ServedModel, prompt: readonly number[], wanted: number | undefined, param: string): number {
  const left = model.context - prompt.length;
  // A prompt that nothing is written after may fill it.
  if (left < (wanted === 0 ? 0 : 1))
    throw badRequest(
      `This model's maximum context length is ${model.context} tokens, your prompt has ${prompt.length}.`,
      param,
      'context_length_exceeded',
    );
  return Math.min(wanted ?? left, left);
}

export function checkEncoder(model: ServedModel, encoder: readonly number[] | undefined, param: string): void {
  if (encoder && encoder.length > model.context)
    throw badRequest(
      `This model's encoder reads at most ${model.context} tokens, the text has ${encoder.length}.`,
      param,
      'context_length_exceeded',
    );
}

/** The lookup draws on a text that the answer is expected to repeat, and on the answer itself. */
class Predicted implements Drafter {
  private readonly before: readonly number[];
  private readonly lookup = new PromptLookup();

  constructor(before: readonly number[]) {
    this.before = before;
  }

  draft(tokens: readonly number[], most: number): readonly number[] {
    return this.lookup.draft([...this.before, ...tokens], most);
  }
}

function drafterFor(model: ServedModel, prediction?: readonly number[]): () => Drafter | null {
  if (model.reads) return () => null;
  if (prediction && prediction.length > 0) return () => new Predicted(prediction);
  return () => (model.options.lookup ? new PromptLookup() : null);
}

/** What a model says that calls functions: which, and in what form. */
export interface ChatAsk extends Ask {
  /** Null: no function can be called. */
  readonly calls: CallSyntax | null;
}

/** The tokens of a dialogue, and how it goes on. */
function promptOf(model: ServedModel, turns: Turn[], tools: readonly Tool[]): Prompt & { decoder: number[] } {
  const { tokenizer, vocabulary, template, opened } = model;
  const last = turns[turns.length - 1];
  const begun = turns.length > 1 && last.role === 'assistant' && !last.calls ? turns.pop()!.text : '';
  const answer = tokenizer.encode(begun, { special: 'text' });
  const rendered = (said: readonly Turn[], offered: readonly Tool[]): number[] => [
    ...template.render(said, true, offered).flatMap((p) => p.ids),
    ...answer,
  ];
  const put = (ids: readonly number[], context?: number[]) =>
    putTokens(tokenizer, vocabulary, opened.objective, Number.POSITIVE_INFINITY, ids, { context });
  if (!model.reads) {
    const ids = rendered(turns, tools);
    return template.whole ? { decoder: beginning(model, ids), stop: [] } : put(ids);
  }
  const told = withTools(turns, tools, template.calls);
  const system = told.filter((t) => t.role === 'system').map((t) => t.text);
  const said = told.filter((t) => t.role !== 'system');
  return put(rendered(said, []), [...tokenizer.encode(system.join('\n\n'), { special: 'text' })]);
}

/** A text that a template wrote begins as it says; examples (serve/tuning) all begin with the same token. */
function beginning({ tokenizer, opened }: ServedModel, ids: number[]): number[] {
  const start = startOf(tokenizer);
  if (opened.config.objective.kind !== 'supervised' || start.every((id, k) => ids[k] === id)) return ids;
  return [...start, ...ids];
}

/**
 * What a dialogue asks. An encoder reads what the system says; the dialogue itself is the decoder's. A last message of
 * the assistant is an answer that has begun: the model goes on with it.
 */
export function chatAsk(model: ServedModel, r: ChatRequest): ChatAsk {
  const { tokenizer, template } = model;
  const calling = callingOf(r);
  const put = promptOf(model, turnsOf(r.messages), calling?.tools ?? []);
  checkEncoder(model, put.encoder, 'messages');
  const topLogprobs = r.logprobs ? (r.top_logprobs ?? 0) : undefined;
  if (r.top_logprobs !== undefined && !r.logprobs)
    throw badRequest("'top_logprobs' needs 'logprobs' to be true", 'top_logprobs');
  const prediction = r.prediction && [...tokenizer.encode(textOf(r.prediction.content), { special: 'text' })];
  return {
    prompt: put.decoder,
    ...(put.encoder && { encoder: put.encoder }),
    ahead: (put.visible ?? -1) + 1,
    maxTokens: roomFor(model, put.decoder, r.max_completion_tokens ?? r.max_tokens, 'messages'),
    sampling: { ...samplingOf(r, model, topLogprobs), never: put.never ?? [] },
    grammar: calling
      ? model.grammars.ofCalls(template.calls, calling, r.response_format)
      : model.grammars.ofFormat(r.response_format),
    calls: calling ? template.calls : null,
    uncut: calling !== null,
    stop: [tokenizer.eot, ...put.stop, ...template.stop],
    stopStrings: [...stopsOf(r.stop), ...template.stopStrings],
    drafter: drafterFor(model, prediction),
  };
}

/** A prompt of the completions API, and what of it is given back with `echo`. */
export interface PromptAsk {
  readonly ask: Ask;
  readonly text: string;
  /** The prompt's own tokens, and how many stand before them. */
  readonly echoed: readonly number[];
  readonly hidden: number;
}

export function promptsOf(r: CompletionRequest): (string | number[])[] {
  const { prompt = '' } = r;
  if (typeof prompt === 'string') return [prompt];
  return typeof prompt[0] === 'number' ? [prompt as number[]] : (prompt as (string | number[])[]);
}

export function completionAsk(model: ServedModel, r: CompletionRequest, prompt: string | number[]): PromptAsk {
  const { tokenizer, vocabulary, opened } = model;
  const own = typeof prompt === 'string' ? [...tokenizer.encode(prompt, { special: 'text' })] : prompt;
  const unknown = own.find((id) => id >= tokenizer.vocabSize);
  if (unknown !== undefined) throw badRequest(`There is no token ${unknown}.`, 'prompt');
  const scores = r.echo === true && r.logprobs !== undefined;
  if (scores && model.reads)
    throw badRequest("This model's encoder reads the prompt: its tokens have no log-probabilities.", 'echo');
  if (r.suffix && r.echo) throw badRequest("'suffix' and 'echo' exclude each other", 'suffix');
  // Tokens are taken as they are; so is text whose own tokens are to be scored.
  const plain = !model.reads && (r.echo === true || (typeof prompt !== 'string' && !opened.objective.prompt));
  const start = typeof prompt === 'string' ? startOf(tokenizer) : [];
  const put = r.suffix
    ? infillPrompt(model, own, [...tokenizer.encode(r.suffix, { special: 'text' })])
    : plain
      ? { decoder: [...start, ...own], stop: [], never: [] }
      : putTokens(tokenizer, vocabulary, opened.objective, Number.POSITIVE_INFINITY, own, {});
  if (put.decoder.length === 0) throw badRequest('The prompt is empty.', 'prompt');
  checkEncoder(model, put.encoder, 'prompt');
  const ask: Ask = {
    prompt: put.decoder,
    ...(put.encoder && { encoder: put.encoder }),
    ahead: (put.visible ?? -1) + 1,
    maxTokens: roomFor(model, put.decoder, r.max_tokens ?? 16, 'prompt'),
    sampling: { ...samplingOf(r, model, r.logprobs), never: put.never ?? [] },
    stop: [tokenizer.eot, ...model.ends, ...put.stop],
    stopStrings: stopsOf(r.stop),
    drafter: drafterFor(model),
  };
  const text = typeof prompt === 'string' ? prompt : tokenizer.decode(prompt);
  return { ask, text, echoed: own, hidden: plain ? start.length : 0 };
}
