/** What requests may hold. Unknown fields are ignored: clients send what other servers know. */
import { z } from 'zod';

const whole = z.number().int();
const maybe = <T extends z.ZodType>(schema: T) => schema.nullish().transform((v) => v ?? undefined);

/** Names and ids are short; bound everything that is kept. */
const name = z.string().min(1).max(512);

/** What chat and plain completions have in common. */
const sampling = {
  model: name,
  temperature: maybe(z.number().min(0).max(2)),
  top_p: maybe(z.number().min(0).max(1)),
  n: maybe(whole.min(1).max(128)),
  stop: maybe(
    z.union(
      [z.string().max(1024), z.array(z.string().max(1024)).max(4)],
      'must be a text of at most 1024 characters, or at most 4',
    ),
  ),
  presence_penalty: maybe(z.number().min(-2).max(2)),
  frequency_penalty: maybe(z.number().min(-2).max(2)),
  logit_bias: maybe(z.record(z.string().regex(/^\d+$/, 'keys must be token ids'), z.number().min(-100).max(100))),
  seed: maybe(z.number().refine((x) => Number.isInteger(x), 'must be a whole number')),
  stream: maybe(z.boolean()),
  stream_options: maybe(z.object({ include_usage: maybe(z.boolean()) })),
  // Not OpenAI's, but what other servers of open models take.
  top_k: maybe(whole.min(0)),
  min_p: maybe(z.number().min(0).max(1)),
  repetition_penalty: maybe(z.number().gt(0).max(10)),
};

const textParts = z.array(
  z.object({ type: z.literal('text', 'only parts of type text are supported'), text: z.string() }),
);
const content = z.union([z.string(), textParts]);
export type Content = z.output<typeof content>;

export const roles = ['system', 'developer', 'user', 'assistant', 'tool'] as const;

export const messageSchema = z.object({
  role: z.enum(roles),
  content: maybe(content),
  name: maybe(z.string().max(512)),
  /** What an assistant asked of tools. */
  tool_calls: maybe(
    z
      .array(
        z.object({
          id: maybe(z.string().max(512)),
          function: z.object({ name: z.string().max(512), arguments: z.string() }),
        }),
      )
      .max(128),
  ),
  /** The call that a tool answers. */
  tool_call_id: maybe(z.string().max(512)),
});
export type Message = z.output<typeof messageSchema>;

const jsonSchemaFormat = z.object({
  type: z.literal('json_schema'),
  json_schema: z.object({
    name: z.string().regex(/^[\w-]{1,64}$/, 'must be 1 to 64 letters, digits, _ or -'),
    schema: maybe(z.union([z.record(z.string(), z.unknown()), z.boolean()])),
    strict: maybe(z.boolean()),
    description: maybe(z.string()),
  }),
});
const responseFormat = z.discriminatedUnion('type', [
  z.object({ type: z.literal('text') }),
  z.object({ type: z.literal('json_object') }),
  jsonSchemaFormat,
]);
export type ResponseFormat = z.output<typeof responseFormat>;

const functionName = z.string().regex(/^[\w-]{1,64}$/, 'must be 1 to 64 letters, digits, _ or -');
export const toolSchema = z.object({
  type: z.literal('function', 'only tools of type function are supported'),
  function: z.object({
    name: functionName,
    description: maybe(z.string()),
    parameters: maybe(z.record(z.string(), z.unknown())),
    strict: maybe(z.boolean()),
  }),
});
const toolChoice = z.union(
  [
    z.enum(['none', 'auto', 'required']),
    z.object({ type: z.literal('function'), function: z.object({ name: functionName }) }),
  ],
  "must be 'none', 'auto', 'required' or {type: 'function', function: {name}}",
);

export const chatSchema = z.object({
  ...sampling,
  messages: z.array(messageSchema).min(1),
  max_tokens: maybe(whole.min(1)),
  max_completion_tokens: maybe(whole.min(1)),
  logprobs: maybe(z.boolean()),
  top_logprobs: maybe(whole.min(0).max(20)),
  response_format: maybe(responseFormat),
  tools: maybe(z.array(toolSchema).max(128)),
  tool_choice: maybe(toolChoice),
  parallel_tool_calls: maybe(z.boolean()),
  /** Text that the answer is expected to repeat much of: it is drafted from. */
  prediction: maybe(z.object({ type: z.literal('content'), content })),
});
export type ChatRequest = z.output<typeof chatSchema>;

const ids = z.array(whole.min(0)).min(1);
const texts = 'must be a text, token ids, or a list of 1 to 2048 of either';

export const completionSchema = z.object({
  ...sampling,
  prompt: maybe(z.union([z.string(), z.array(z.string()).min(1), ids, z.array(ids).min(1)], texts)),
  max_tokens: maybe(whole.min(0)),
  logprobs: maybe(whole.min(0).max(5)),
  echo: maybe(z.boolean()),
  best_of: maybe(whole.min(1).max(20)),
  suffix: maybe(z.string()),
});
export type CompletionRequest = z.output<typeof completionSchema>;

export const embeddingSchema = z.object({
  model: name,
  input: z.union([z.string(), z.array(z.string()).min(1).max(2048), ids, z.array(ids).min(1).max(2048)], texts),
  encoding_format: maybe(z.enum(['float', 'base64'])),
  dimensions: maybe(whole.min(1)),
});
