/** An error meant for a person: what happened and why in one line, and (hint) the next command or step. */
export class AnsatzError extends Error {
  readonly hint: string | undefined;

  constructor(message: string, options: { hint?: string; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'AnsatzError';
    this.hint = options.hint;
  }
}
