/** POST /v1/embeddings. */
import { jsonBody } from '../http/body.ts';
import { badRequest } from '../http/errors.ts';
import { type Ctx, cutOff, type Limited, leaseModel, reserveTokens } from '../http/exchange.ts';
import { normalised } from '../models/embedder.ts';
import type { Registry } from '../models/registry.ts';
import { embeddingSchema } from './schema.ts';

export async function embeddings(c: Ctx, registry: Registry, limits: Limited): Promise<Response> {
  const r = await jsonBody(c, embeddingSchema, limits.maxBody);
  const inputs: (string | number[])[] =
    typeof r.input === 'string'
      ? [r.input]
      : typeof r.input[0] === 'number'
        ? [r.input as number[]]
        : (r.input as string[]);
  const lease = await leaseModel(c, registry, r.model);
  try {
    const { model } = lease;
    const { tokenizer, context } = model;
    const { width } = model.opened.model.spec;
    if (r.dimensions !== undefined && r.dimensions > width)
      throw badRequest(`This model's embeddings have ${width} dimensions.`, 'dimensions');
    const texts = inputs.map((input, k) => {
      const ids = typeof input === 'string' ? [...tokenizer.encode(input, { special: 'text' })] : input;
      const what = `input[${k}]`;
      if (ids.length === 0) throw badRequest('An input must not be empty.', what);
      const unknown = ids.find((id) => id >= tokenizer.vocabSize);
      if (unknown !== undefined) throw badRequest(`There is no token ${unknown}.`, what);
      if (ids.length > context)
        throw badRequest(
          `This model's maximum context length is ${context} tokens, the input has ${ids.length}.`,
          what,
          'context_length_exceeded',
        );
      return ids;
    });
    const tokens = texts.reduce((n, ids) => n + ids.length, 0);
    const settle = reserveTokens(c, tokens);
    const data: object[] = [];
    let done = 0;
    try {
      for (const [index, ids] of texts.entries()) {
        if (c.get('gone').aborted) return cutOff(c);
        const whole = await model.embed(ids);
        done += ids.length;
        const vector = r.dimensions === undefined ? whole : normalised(whole.subarray(0, r.dimensions));
        const embedding = r.encoding_format === 'base64' ? base64(vector) : Array.from(vector);
        data.push({ object: 'embedding', index, embedding });
      }
    } finally {
      settle(done);
      c.get('meter').promptTokens = done;
    }
    const usage = { prompt_tokens: tokens, total_tokens: tokens };
    return c.json({ object: 'list', data, model: r.model, usage });
  } finally {
    lease.release();
  }
}

/** Little-endian f32, as clients decode it. */
function base64(x: Float32Array): string {
  const bytes = Buffer.alloc(4 * x.length);
  x.forEach((v, k) => {
    bytes.writeFloatLE(v, 4 * k);
  });
  return bytes.toString('base64');
}
