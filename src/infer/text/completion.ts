/**
 * Text from the engine as it comes: tokens become characters, stop strings end it, leaving early frees its place. Who takes
 * no pieces for a while makes it pause (engine/flow.ts).
 */
import { StreamDecoder, type Tokenizer } from '../../data/tokenizer/index.ts';
import { type Decoding, type Finished, type FinishReason, Flow, type Pick, type Request } from '../engine/index.ts';
import { StopStrings } from './stops.ts';

export interface CompletionRequest extends Omit<Request, 'onToken' | 'signal' | 'flow'> {
  /** Texts that end the completion; they are not part of it. */
  readonly stopStrings?: readonly string[];
  /** Whether what comes now is part of something that is not to be cut: no stop string ends it. */
  readonly whole?: () => boolean;
  readonly signal?: AbortSignal;
}

/** A piece of text and the tokens that it came from. A character whose bytes come in two tokens is one piece. */
export interface Piece {
  readonly text: string;
  readonly picks: readonly Pick[];
}

export interface CompletionEnd extends Finished {
  readonly reason: FinishReason;
  /** The stop string that ended it. */
  readonly stopString: string | null;
}

/** Pieces in order; the generator's return value says how it ended. Leaving the loop early cancels the request. */
export async function* complete(
  engine: Decoding,
  tokenizer: Tokenizer,
  request: CompletionRequest,
): AsyncGenerator<Piece, CompletionEnd> {
  const decoder = new StreamDecoder(tokenizer);
  const stops = new StopStrings(request.stopStrings ?? []);
  const control = new AbortController();
  const forward = (): void => control.abort();
  if (request.signal?.aborted) control.abort();
  request.signal?.addEventListener('abort', forward);

  const ready: Piece[] = [];
  const flow = new Flow();
  let picks: Pick[] = [];
  let wake: () => void = () => {};
  const release = (text: string): void => {
    if (text === '') return;
    ready.push({ text, picks });
    flow.made(picks.length);
    picks = [];
    wake();
  };
  let end: { finished?: Finished; error?: Error } | null = null;
  engine
    .submit({
      ...request,
      signal: control.signal,
      flow,
      onToken: (pick) => {
        picks.push(pick);
        const text = decoder.push(pick.token);
        release(request.whole?.() ? stops.pass(text) : stops.push(text));
        return stops.found === null;
      },
    })
    .then(
      (finished) => {
        end = { finished };
      },
      (error: Error) => {
        end = { error };
      },
    )
    .finally(() => wake());
  try {
    for (;;) {
      const piece = ready.shift();
      if (piece) {
        flow.taken(piece.picks.length);
        yield piece;
        continue;
      }
      if (end) break;
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
    const { finished, error } = end as { finished?: Finished; error?: Error };
    if (error) throw error;
    if (stops.found === null) {
      const rest = stops.push(decoder.end()) + stops.end();
      if (rest !== '' || picks.length > 0) yield { text: rest, picks };
    } else if (picks.length > 0) yield { text: '', picks };
    return { ...finished!, stopString: stops.found };
  } finally {
    request.signal?.removeEventListener('abort', forward);
    control.abort();
  }
}
