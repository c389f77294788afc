/** Answers whose connection is lost, and clients that stop taking theirs. */
import type { ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { MiddlewareHandler } from 'hono';
import type { Env } from './exchange.ts';

/** Answers of a connection that have not been sent: requests may be asked before the first is answered (pipelining). */
const open = new WeakMap<Socket, Set<ServerResponse>>();

/** What is answered on a connection that closes is closed too. */
function follow(socket: Socket, out: ServerResponse): void {
  let all = open.get(socket);
  if (!all) {
    const made = new Set<ServerResponse>();
    open.set(socket, (all = made));
    socket.once('close', () => {
      for (const one of made) {
        // Node closes the one whose turn it is; those behind it have no connection yet, and never hear of its end.
        if (one.socket) continue;
        one.destroy();
        one.emit('close');
      }
    });
  }
  const kept = all.add(out);
  out.once('close', () => kept.delete(out));
}

/**
 * Lets go of a client that has taken nothing of its answer for `stallMs` milliseconds (0: never). Bytes that the system
 * has accepted count as taken; a client that waits for an answer is not in question.
 */
export function connections(stallMs: number): MiddlewareHandler<Env> {
  return async (c, next) => {
    const { incoming, outgoing } = c.env;
    const { socket } = incoming;
    follow(socket, outgoing);
    if (stallMs > 0)
      outgoing.setTimeout(stallMs, () => {
        if (socket.writableLength > 0) socket.destroy();
        // It tells once that nothing has moved: while an answer is being made, it is asked again.
        else if (outgoing.socket) socket.setTimeout(stallMs);
      });
    await next();
  };
}
