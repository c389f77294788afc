/**
 * Server-sent events on a Node response. Every event is one write, at once; a client that reads slowly holds up its own
 * writer and nobody else.
 */
import type { ServerResponse } from 'node:http';

/** Comments keep proxies from closing a connection on which nothing happens. */
const PING_MS = 15_000;

export class EventStream {
  private readonly out: ServerResponse;
  private readonly timer: NodeJS.Timeout;

  constructor(out: ServerResponse, headers: Readonly<Record<string, string>>) {
    this.out = out;
    // An answer of many small pieces must not wait for more of them (Nagle).
    out.socket?.setNoDelay(true);
    out.writeHead(200, {
      ...headers,
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache',
      'x-accel-buffering': 'no',
    });
    out.flushHeaders();
    this.timer = setInterval(() => {
      if (!out.writableNeedDrain) out.write(': ping\n\n');
    }, PING_MS);
    this.timer.unref();
  }

  /** Sends one event; settles when there is room for the next. */
  async send(data: unknown): Promise<void> {
    await this.write(`data: ${JSON.stringify(data)}\n\n`);
  }

  async done(): Promise<void> {
    await this.write('data: [DONE]\n\n');
  }

  end(): void {
    clearInterval(this.timer);
    if (!this.out.destroyed) this.out.end();
  }

  private async write(text: string): Promise<void> {
    const { out } = this;
    if (out.destroyed || out.write(text)) return;
    await new Promise<void>((resolve) => {
      const go = (): void => {
        out.off('drain', go);
        out.off('close', go);
        resolve();
      };
      out.on('drain', go);
      out.on('close', go);
    });
  }
}
