/** Files of the page at `/`, from a folder beside the sources; a plain page where there is none. */
import { existsSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { dirname, extname, join, resolve, sep } from 'node:path';
import { fileURLToPath } from 'node:url';

const TYPES: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.json': 'application/json',
  '.svg': 'image/svg+xml',
  '.png': 'image/png',
  '.ico': 'image/x-icon',
  '.woff2': 'font/woff2',
  '.txt': 'text/plain; charset=utf-8',
};

const here = dirname(fileURLToPath(import.meta.url));
/** Where a built page may lie. */
const FOLDERS = [resolve(here, '..', '..', '..', 'web', 'dist'), resolve(here, '..', 'static')];

export const pageFolder = (): string | null => FOLDERS.find((f) => existsSync(join(f, 'index.html'))) ?? null;

const PLAIN = `<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Ansatz</title>
<style>body{font:16px/1.5 system-ui;max-width:40em;margin:3em auto;padding:0 1em}code{background:#8882;padding:.1em .3em}</style>
<h1>Ansatz</h1>
<p>This server speaks OpenAI's API. Point a client at <code>/v1</code>: <a href="/v1/models">/v1/models</a>,
<code>/v1/chat/completions</code>, <code>/v1/completions</code>, <code>/v1/embeddings</code>, <code>/v1/files</code>,
<code>/v1/fine_tuning/jobs</code>. <a href="/metrics">/metrics</a> and <a href="/healthz">/healthz</a> say how it is.</p>
`;

const COMMON = { 'x-content-type-options': 'nosniff', 'referrer-policy': 'no-referrer' };
/** A page may load its own files and ask its own server, nothing else; nothing inline runs, nobody may frame it. */
const POLICY = [
  "default-src 'none'",
  ...["script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'"],
  ...["base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"],
].join('; ');

/** The file that a path of the page names; null when there is none. Nothing outside the folder can be named. */
export function pageFile(folder: string, path: string): string | null {
  let name: string;
  try {
    name = decodeURIComponent(path);
  } catch {
    return null;
  }
  if (name.includes('\0') || name.includes('\\')) return null;
  const wanted = resolve(folder, `.${name.endsWith('/') ? `${name}index.html` : name}`);
  try {
    // Links are followed before anything is compared.
    const [root, file] = [realpathSync(folder), realpathSync(wanted)];
    return file.startsWith(root + sep) && statSync(file).isFile() ? file : null;
  } catch {
    return null;
  }
}

export function page(folder: string | null, path: string): Response | null {
  if (!folder)
    return path === '/' ? new Response(PLAIN, { headers: { ...COMMON, 'content-type': TYPES['.html'] } }) : null;
  const file = pageFile(folder, path);
  if (!file) return null;
  const type = TYPES[extname(file)] ?? 'application/octet-stream';
  // Built files have names of their contents; the page that names them has not.
  const cache = path.startsWith('/assets/') ? 'public, max-age=31536000, immutable' : 'no-cache';
  return new Response(new Uint8Array(readFileSync(file)), {
    headers: { ...COMMON, 'content-security-policy': POLICY, 'content-type': type, 'cache-control': cache },
  });
}
