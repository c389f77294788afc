/** GET /v1/models, GET and DELETE /v1/models/{id}. */
import { Hono } from 'hono';
import { allowsModel } from '../auth/keys.ts';
import { ApiError, noModel } from '../http/errors.ts';
import type { Ctx, Env } from '../http/exchange.ts';
import { scopeGuard } from '../http/guard.ts';
import type { Registry } from '../models/registry.ts';
import type { ModelInfo } from '../models/served.ts';
import type { TuningJobs } from '../tuning/jobs.ts';

const object = ({ name, created, owner }: ModelInfo): object => ({
  id: name,
  object: 'model',
  created,
  owned_by: owner,
});

export function modelRoutes(registry: Registry, jobs: TuningJobs): Hono<Env> {
  const app = new Hono<Env>();
  const visible = (c: Ctx, name: string): boolean => {
    const key = c.get('key');
    return !key || allowsModel(key, name);
  };
  /** A model of that name that the caller may see. */
  const found = (c: Ctx): ModelInfo => {
    const name = c.req.param('id')!;
    const info = registry.info(name);
    if (!info || !visible(c, name)) throw noModel(name);
    return info;
  };
  app.get('/', (c) => {
    const data = registry.list().filter((m) => visible(c, m.name));
    return c.json({ object: 'list', data: data.map(object) });
  });
  app.get('/:id{.+}', (c) => c.json(object(found(c))));
  app.delete('/:id{.+}', scopeGuard('fine-tuning'), async (c) => {
    const { name, tuned } = found(c);
    if (!tuned)
      throw new ApiError(403, `'${name}' is a model that the server was started with: it cannot be deleted.`, {
        param: 'model',
      });
    await jobs.deleteModel(name);
    return c.json({ id: name, object: 'model', deleted: true });
  });
  return app;
}
