/** What went wrong and what to do about it, in one line each. */
export class ApiError extends Error {
  /** HTTP status; 0: no answer at all. */
  readonly status: number;
  readonly hint: string;

  constructor(status: number, message: string, hint: string) {
    super(message);
    this.status = status;
    this.hint = hint;
  }
}

/** A short thing to do for each status that servers of this API give. */
function hintFor(status: number, code: string | null, retryAfter: string | null): string {
  if (status === 401) return 'Enter an API key.';
  if (status === 403) return 'Use a key that may do this.';
  if (code === 'model_not_found') return 'Choose another run at the top.';
  if (code === 'context_length_exceeded') return 'Shorten the text, or lower “Most tokens”.';
  if (status === 413) return 'Shorten the text.';
  if (status === 429) return retryAfter ? `Try again in ${retryAfter} s.` : 'Wait a moment and try again.';
  if (status === 503) return 'The model is busy: try again in a moment.';
  if (status >= 500) return 'Try again; the server’s log says more.';
  if (status === 400) return 'Change the text or the settings.';
  return 'Try again.';
}

const sentence = (text: string): string => (/[.!?]$/.test(text) ? text : `${text}.`);

/** The error of an answer that is not ok. */
export async function errorOf(response: Response): Promise<ApiError> {
  let message = `The server answered ${response.status}`;
  let code: string | null = null;
  try {
    const body = (await response.json()) as { error?: { message?: unknown; code?: unknown } };
    if (typeof body.error?.message === 'string') message = body.error.message;
    if (typeof body.error?.code === 'string') code = body.error.code;
  } catch {
    // Not JSON: the status says it.
  }
  const hint = hintFor(response.status, code, response.headers.get('retry-after'));
  return new ApiError(response.status, sentence(message), hint);
}

export const noAnswer = (): ApiError =>
  new ApiError(0, 'The server does not answer.', 'Check that `ansatz serve` still runs, then try again.');

export const asError = (error: unknown): ApiError =>
  error instanceof ApiError
    ? error
    : new ApiError(-1, sentence((error as Error).message ?? String(error)), 'Try again.');

/** Whether the user ended it. */
export const wasStopped = (error: unknown): boolean => (error as Error)?.name === 'AbortError';
