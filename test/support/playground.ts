// The server with its page, and a real headless Chromium that talks to nobody else.
import { existsSync } from 'node:fs';
import { basename, delimiter, join } from 'node:path';
import { type Browser, chromium, type Page } from 'playwright-core';
import { recordOf } from '../../src/serve/auth/keys.ts';
import type { RequestRecord } from '../../src/serve/http/observe.ts';
import { startServer } from '../../src/serve/server.ts';

export interface Playground {
  readonly url: string;
  /** What has been answered, in order. */
  readonly requests: readonly RequestRecord[];
  /** @throws whatever the server did not expect. */
  close(): Promise<void>;
}

/** Serves runs by their folders. `queue` 0: every model is busy. */
export async function startPlayground(
  runs: readonly string[],
  data: string,
  { queue = 8, key }: { queue?: number; key?: string } = {},
): Promise<Playground> {
  const unforeseen: unknown[] = [];
  const requests: RequestRecord[] = [];
  const server = await startServer({
    runs: runs.map((path) => ({ name: basename(path), path })),
    ...{ host: '127.0.0.1', port: 0, data, cors: [], maxBody: 1 << 20 },
    ...{ sequences: 4, queue, lookup: false },
    keys: key ? [recordOf('test', key)] : [],
    log: (record) => requests.push(record),
    unforeseen: (error) => unforeseen.push(error),
  });
  let closed: Promise<void> | undefined;
  const close = async (): Promise<void> => {
    await server.close();
    if (unforeseen.length > 0) throw unforeseen[0];
  };
  return { url: server.url, requests, close: () => (closed ??= close()) };
}

const names = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome'];

/** A Chromium of this machine, from PATH. */
export function findChromium(): string | undefined {
  const folders = (process.env.PATH ?? '').split(delimiter).filter((f) => f !== '');
  return names.flatMap((name) => folders.map((folder) => join(folder, name))).find((path) => existsSync(path));
}

export const openBrowser = (executablePath: string): Promise<Browser> =>
  chromium.launch({
    executablePath,
    args: [
      // Names other than this machine's do not resolve: whatever asked for one would fail, and be seen.
      '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
      ...(process.getuid?.() === 0 ? ['--no-sandbox'] : []),
    ],
  });

export interface Watched {
  readonly page: Page;
  /** Errors on the console and in scripts, and every URL that was asked for. */
  readonly errors: string[];
  readonly urls: string[];
}

/** A page in a profile of its own, loaded and ready. */
export async function openPage(
  browser: Browser,
  url: string,
  options: Parameters<Browser['newContext']>[0] = {},
): Promise<Watched> {
  const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, ...options });
  context.setDefaultTimeout(20_000);
  const page = await context.newPage();
  const [errors, urls]: [string[], string[]] = [[], []];
  page.on('console', (m) => {
    if (m.type() === 'error' || m.type() === 'warning') errors.push(m.text());
  });
  page.on('pageerror', (e) => errors.push(e.message));
  context.on('request', (r) => urls.push(r.url()));
  await page.goto(url);
  await page.locator('header').waitFor();
  return { page, errors, urls };
}
