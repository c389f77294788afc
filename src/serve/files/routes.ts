/** /v1/files. */
import { Hono } from 'hono';
import { readBody } from '../http/body.ts';
import { ApiError, badRequest } from '../http/errors.ts';
import type { Ctx, Env, Limited } from '../http/exchange.ts';
import { scopeGuard } from '../http/guard.ts';
import { listPage } from '../http/list.ts';
import { type FileObject, type FileStore, PURPOSES, type Purpose } from './store.ts';

export const noFile = (id: string): ApiError =>
  new ApiError(404, `No such File object: ${id}`, { param: 'id', code: 'not_found' });

export function fileRoutes(files: FileStore, limits: Limited): Hono<Env> {
  const app = new Hono<Env>();
  app.use(scopeGuard('files'));
  const found = (c: Ctx): FileObject => {
    const id = c.req.param('id')!;
    const file = files.get(id);
    if (!file) throw noFile(id);
    return file;
  };
  app.post('/', async (c) => {
    const form = await multipart(c, limits.maxBody);
    const purpose = form.get('purpose');
    const file = form.get('file');
    if (typeof purpose !== 'string' || !PURPOSES.includes(purpose as Purpose))
      throw badRequest(`'purpose' must be one of ${PURPOSES.join(', ')}`, 'purpose');
    if (!(file instanceof Blob)) throw badRequest("'file' is a required property", 'file');
    if (file.size === 0) throw badRequest('The file is empty.', 'file');
    const name = 'name' in file ? String(file.name) : 'file';
    return c.json(await files.add(name, purpose as Purpose, new Uint8Array(await file.arrayBuffer())));
  });
  app.get('/', (c) => {
    const { purpose } = c.req.query();
    const all = files.list().filter((f) => purpose === undefined || f.purpose === purpose);
    return c.json(listPage(c, all, 10_000, 10_000));
  });
  app.get('/:id', (c) => c.json(found(c)));
  app.get('/:id/content', async (c) => {
    const file = found(c);
    const bytes = await files.content(file);
    // What was uploaded is never shown as a page of this server's.
    return new Response(new Uint8Array(bytes), {
      headers: {
        'content-type': 'application/octet-stream',
        'x-content-type-options': 'nosniff',
        'content-disposition': `attachment; filename*=UTF-8''${encodeURIComponent(file.filename)}`,
      },
    });
  });
  app.delete('/:id', async (c) => {
    const file = found(c);
    await files.delete(file);
    return c.json({ id: file.id, object: 'file', deleted: true });
  });
  return app;
}

async function multipart(c: Ctx, limit: number): Promise<FormData> {
  const type = c.req.header('content-type') ?? '';
  if (!/^multipart\/form-data\s*;/i.test(type))
    throw badRequest("A file is uploaded as multipart/form-data with fields 'file' and 'purpose'.");
  const bytes = await readBody(c.req.raw, limit);
  try {
    return await new Response(new Uint8Array(bytes), { headers: { 'content-type': type } }).formData();
  } catch {
    throw badRequest('The multipart body is malformed.');
  }
}
