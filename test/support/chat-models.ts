// Models of others with chat templates: small, with random weights, as their makers would publish them.
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Tokenizer } from '../../src/data/tokenizer/index.ts';
import { importHuggingFace } from '../../src/infer/formats/import.ts';
import { decoders, madeRun, smallTokenizer, toHf } from './format-runs.ts';
import { editJson } from './hf-edit.ts';

/** A small byte-level tokenizer with control tokens, and others that are tokens but no control tokens. */
export function markedTokenizer(specials: readonly string[], ordinary: readonly string[] = []): Tokenizer {
  const base = smallTokenizer('qwen2', ['<|endoftext|>', ...specials]);
  const json = structuredClone(base.toJSON()) as { added_tokens: object[] };
  ordinary.forEach((content, k) => {
    const id = base.vocabSize + k;
    json.added_tokens.push({
      ...{ id, content, special: false, normalized: false },
      ...{ single_word: false, lstrip: false, rstrip: false },
    });
  });
  return Tokenizer.fromJSON(json);
}

/** ChatML with tools, in the manner of Qwen 2.5. */
export const CHATML = `{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}{{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
`;
export const CHATML_TOKENS = ['<|im_start|>', '<|im_end|>'];

/** Turns must alternate, there is no system, contents are trimmed, the text begins with a token (as Gemma). */
export const STRICT = `{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}`;
export const STRICT_TOKENS = ['<bos>', '<start_of_turn>', '<end_of_turn>'];

/** Calls are plain JSON, one at a time, in the manner of Llama 3.1; thoughts of earlier answers are left out. */
export const HEADERS = `{{- bos_token }}{%- if tools is not none %}{{- '<|start_header_id|>system<|end_header_id|>\\n\\nFunctions: ' }}{%- for t in tools %}{{- t | tojson(indent=4) }}{%- endfor %}{{- '<|eot_id|>' }}{%- endif %}{%- for message in messages %}
{%- if message.tool_calls is defined %}
    {%- if message.tool_calls | length != 1 %}{{- raise_exception('This model only supports single tool-calls at once!') }}{%- endif %}
    {%- set call = message.tool_calls[0].function %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
    {{- '{"name": "' + call.name + '", ' }}{{- '"parameters": ' }}{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}
{%- else %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + content | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}`;
export const HEADER_TOKENS = ['<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'];

export interface ChatModelOptions {
  readonly tokenizer: Tokenizer;
  readonly template?: string;
  /** Where the template lies; by default in tokenizer_config.json. */
  readonly file?: 'chat_template.jinja' | 'chat_template.json';
  readonly tokens?: Record<string, string>;
  readonly context?: number;
}

/** A Hugging Face folder of a model, and the run that it was imported as. */
export async function chatModel(place: string, o: ChatModelOptions): Promise<{ hf: string; run: string }> {
  const [made, hf, run] = ['made', 'hf', 'run'].map((part) => join(place, part));
  const { context = 512 } = o;
  const spec = { ...decoders['tied, one head a group, theta 500000'], context };
  await toHf(await madeRun(made, spec, { tokenizer: o.tokenizer }), hf);
  rmSync(made, { recursive: true });
  editJson(hf, 'tokenizer_config.json', (c) => ({
    ...{ ...c, ...o.tokens },
    ...(o.template !== undefined && !o.file && { chat_template: o.template }),
  }));
  if (o.file === 'chat_template.jinja') writeFileSync(join(hf, o.file), o.template!);
  if (o.file === 'chat_template.json') writeFileSync(join(hf, o.file), JSON.stringify({ chat_template: o.template }));
  await importHuggingFace({ folder: hf, out: run });
  return { hf, run };
}
