/** /v1/fine_tuning/jobs. */
import { Hono } from 'hono';
import { allowsModel } from '../auth/keys.ts';
import { jsonBody } from '../http/body.ts';
import { ApiError, noModel } from '../http/errors.ts';
import type { Ctx, Env, Limited } from '../http/exchange.ts';
import { scopeGuard } from '../http/guard.ts';
import { listPage } from '../http/list.ts';
import { checkpointObject, type Job, jobObject, jobSchema } from './job.ts';
import type { TuningJobs } from './jobs.ts';

export function tuningRoutes(jobs: TuningJobs, limits: Limited): Hono<Env> {
  const app = new Hono<Env>();
  app.use(scopeGuard('fine-tuning'));
  const found = (c: Ctx): Job => {
    const id = c.req.param('id')!;
    const job = jobs.get(id);
    if (!job)
      throw new ApiError(404, `Could not find fine tune: ${id}`, {
        param: 'fine_tune_id',
        code: 'fine_tune_not_found',
      });
    return job;
  };
  app.post('/', async (c) => {
    const r = await jsonBody(c, jobSchema, limits.maxBody);
    const key = c.get('key');
    if (key && !allowsModel(key, r.model)) throw noModel(r.model);
    return c.json(jobObject(await jobs.create(r)));
  });
  app.get('/', (c) => c.json(listPage(c, jobs.list().map(jobObject))));
  app.get('/:id', (c) => c.json(jobObject(found(c))));
  app.post('/:id/cancel', async (c) => c.json(jobObject(await jobs.halt(found(c), 'cancelled'))));
  app.post('/:id/pause', async (c) => c.json(jobObject(await jobs.halt(found(c), 'paused'))));
  app.post('/:id/resume', async (c) => c.json(jobObject(await jobs.resume(found(c)))));
  app.get('/:id/events', (c) => c.json(listPage(c, jobs.events(found(c)))));
  app.get('/:id/checkpoints', (c) => {
    const job = found(c);
    const newestFirst = [...job.checkpoints].reverse().map((p) => checkpointObject(job, p));
    return c.json(listPage(c, newestFirst, 10));
  });
  return app;
}
