/** Choices as server-sent events. Headers wait for the first token: what fails before it is answered with a status. */
import { asApiError } from '../http/errors.ts';
import { alreadySent, type Ctx, closingError } from '../http/exchange.ts';
import { EventStream } from '../http/sse.ts';
import type { ChoiceEvent, Choices } from './choices.ts';

/** What there is to say: an event of a choice, or (neither piece nor end) that all of them have ended. */
export type StreamEvent = ChoiceEvent | { readonly index: -1; readonly piece?: undefined; readonly end?: undefined };

export async function streamed(
  c: Ctx,
  choices: Choices,
  begin: (out: EventStream) => Promise<void>,
  say: (out: EventStream, event: StreamEvent) => Promise<void>,
): Promise<Response> {
  let out: EventStream | undefined;
  const open = async (): Promise<EventStream> => {
    if (out) return out;
    out = new EventStream(c.env.outgoing, Object.fromEntries(c.res.headers));
    await begin(out);
    return out;
  };
  try {
    for await (const event of choices.events()) {
      if (c.get('gone').aborted) break;
      await say(await open(), event);
    }
    if (!c.get('gone').aborted) {
      await say(await open(), { index: -1 });
      await out?.done();
    } else if (!c.env.outgoing.destroyed) throw closingError();
  } catch (error) {
    if (!out) throw error;
    await out.send(asApiError(error, c.get('unforeseen')).body);
  } finally {
    out?.end();
    choices.close();
  }
  return alreadySent();
}
