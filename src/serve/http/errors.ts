/** Errors as OpenAI's API has them: {"error": {message, type, param, code}} with a status that clients act on. */
import { AnsatzError } from '../../backend/errors.ts';

export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: string | null;
  };
}

interface Details {
  readonly param?: string | null;
  readonly code?: string;
  readonly type?: string;
  readonly headers?: Readonly<Record<string, string>>;
}

const TYPES: Readonly<Record<number, string>> = {
  401: 'authentication_error',
  403: 'permission_error',
  429: 'rate_limit_error',
  500: 'server_error',
  503: 'overloaded_error',
};

export class ApiError extends Error {
  readonly status: number;
  readonly body: ErrorBody;
  readonly headers: Readonly<Record<string, string>>;

  constructor(status: number, message: string, { param = null, code, type, headers = {} }: Details = {}) {
    super(message);
    this.status = status;
    this.headers = headers;
    this.body = {
      error: { message, type: type ?? TYPES[status] ?? 'invalid_request_error', param, code: code ?? null },
    };
  }
}

export const badRequest = (message: string, param?: string, code?: string): ApiError =>
  new ApiError(400, message, { param, code });

export const noModel = (name: string): ApiError =>
  new ApiError(404, `The model '${name}' does not exist or you do not have access to it.`, {
    param: 'model',
    code: 'model_not_found',
  });

/** What to answer for anything that was thrown; `unforeseen` hears of what nobody thought of. */
export function asApiError(error: unknown, unforeseen: (error: unknown) => void = () => {}): ApiError {
  if (error instanceof ApiError) return error;
  // What our own parts refuse, they refuse because of what was asked for.
  if (error instanceof AnsatzError) return badRequest(error.hint ? `${error.message}; ${error.hint}` : error.message);
  unforeseen(error);
  return new ApiError(500, 'The server had an error while processing your request.');
}
