/**
 * What the OpenAI API has no words for: GET /ansatz/models (cards of the models) and POST /ansatz/inspect (a text as a
 * model sees it: tokens, what it expected, which experts and units fired, bytes read). docs/playground.md describes both.
 */
import { Hono } from 'hono';
import { z } from 'zod';
import { type Inspection, Inspector, type LayerSeen } from '../infer/inside/index.ts';
import { chatAsk, completionAsk } from './api/asks.ts';
import { spelled } from './api/logprobs.ts';
import { chatSchema, completionSchema, messageSchema } from './api/schema.ts';
import { allowsModel } from './auth/keys.ts';
import { jsonBody } from './http/body.ts';
import { type Ctx, type Env, type Limited, leaseModel, reserveTokens } from './http/exchange.ts';
import { scopeGuard } from './http/guard.ts';
import { modelCard } from './model-card.ts';
import type { Ask } from './models/generation.ts';
import type { Registry } from './models/registry.ts';
import type { ServedModel } from './models/served.ts';
import type { ModelCard, WireCandidate, WireInspection, WireLayer } from './wire.ts';

const inspectSchema = z.object({
  model: z.string().min(1).max(512),
  /** What the model was given, as in a completion or a dialogue; and what it has written. */
  prompt: z.string().nullish(),
  suffix: z.string().nullish(),
  messages: z.array(messageSchema).min(1).nullish(),
  completion: z.string().default(''),
  /** Likeliest tokens of each place. */
  top: z.number().int().min(0).max(20).default(8),
});
type InspectRequest = z.output<typeof inspectSchema>;

/** To be mounted at /ansatz, behind the guard that finds the caller's key. Whoever may infer may look inside. */
export function inspectionRoutes(registry: Registry, limits: Limited): Hono<Env> {
  const app = new Hono<Env>();
  app.get('/models', async (c) => c.json({ object: 'list', data: await cards(c, registry) }));
  app.post('/inspect', scopeGuard('inference'), (c) => inspect(c, registry, limits));
  return app;
}

async function cards(c: Ctx, registry: Registry): Promise<ModelCard[]> {
  const key = c.get('key');
  const open = new Map((await registry.open()).map((m) => [m.info.name, m]));
  return registry
    .list()
    .filter(({ name }) => !key || allowsModel(key, name))
    .flatMap(({ name }) => {
      const path = registry.pathOf(name);
      return path === undefined ? [] : [modelCard(name, path, open.get(name))];
    });
}

/** As long as its model is in use; passes are captured once for each length. */
const inspectors = new WeakMap<ServedModel, Inspector>();

function inspectorOf(model: ServedModel): Inspector {
  const known = inspectors.get(model);
  if (known) return known;
  const { device, model: built, params, config, objective } = model.opened;
  const ahead = objective.shape.visible;
  const made = new Inspector(device, built, params, { compute: config.precision, ahead });
  inspectors.set(model, made);
  return made;
}

/** Frees what looking into a model has taken; to be called before its parameters go. */
export async function closeInspector(model: ServedModel): Promise<void> {
  await inspectors.get(model)?.dispose();
  inspectors.delete(model);
}

/** What the model was asked, put exactly as the completion APIs put it. */
function askOf(model: ServedModel, r: InspectRequest): Ask {
  if (r.messages) return chatAsk(model, chatSchema.parse({ model: r.model, messages: r.messages }));
  const { prompt, suffix } = r;
  return completionAsk(model, completionSchema.parse({ model: r.model, prompt, suffix }), prompt ?? '').ask;
}

async function inspect(c: Ctx, registry: Registry, limits: Limited): Promise<Response> {
  const r = await jsonBody(c, inspectSchema, limits.maxBody);
  const lease = await leaseModel(c, registry, r.model);
  try {
    const { model } = lease;
    const ask = askOf(model, r);
    const written = [...model.tokenizer.encode(r.completion, { special: 'text' })];
    const settle = reserveTokens(c, ask.prompt.length + written.length + (ask.encoder?.length ?? 0));
    const text = {
      decoder: [...ask.prompt, ...written].slice(0, model.context),
      ...(ask.encoder && { encoder: ask.encoder }),
      visible: (ask.ahead ?? 0) - 1,
    };
    const seen = await inspectorOf(model).inspect(text, r.top);
    settle(seen.tokens.length + (seen.encoder?.tokens.length ?? 0));
    return c.json(answer(model, seen, ask.prompt.length));
  } finally {
    lease.release();
  }
}

function answer(model: ServedModel, seen: Inspection, given: number): WireInspection {
  const { tokenizer } = model;
  const named = (token: number, logprob: number | null): WireCandidate => ({
    id: token,
    ...spelled(tokenizer, token),
    logprob,
  });
  const tops = (k: number): WireCandidate[] => seen.top[k].map((t) => named(t.token, t.logprob));
  return {
    object: 'inspection',
    model: model.info.name,
    tokens: seen.tokens.map((token, k) => ({
      ...named(token, seen.logprobs[k]),
      top: tops(k),
      given: k + seen.cut < given,
    })),
    next: tops(seen.tokens.length),
    cut: seen.cut,
    layers: seen.layers.map(packed),
    encoder: seen.encoder && {
      tokens: seen.encoder.tokens.map((token) => ({ ...named(token, null), given: true })),
      layers: seen.encoder.layers.map(packed),
    },
    bytes: seen.bytes,
  };
}

const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64');

function packed({ cells, strength, active, ...rest }: LayerSeen): WireLayer {
  return {
    ...rest,
    cells: base64(cells),
    ...(strength && { strength: base64(strength) }),
    active: Array.from(active, (a) => Number(a.toFixed(5))),
  };
}
