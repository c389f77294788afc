/** Parts chosen by name: a schema whose `kind` picks, from a registry, the schema of the other options. */
import { z } from 'zod';

/** A checked choice: its kind, and that kind's options with defaults filled in. */
export type KindConfig = { readonly kind: string; readonly [option: string]: unknown };

export interface KindSource {
  /** What is chosen, for messages: "unknown ffn 'x': choose from ...". */
  readonly what: string;
  find(kind: string): { readonly options: z.ZodType } | undefined;
  names(): string[];
}

const named = z.looseObject({ kind: z.string() });

/** Schema of a choice. A bare string is a kind with its defaults, unless `bare` is false. */
export function kindSchema<T extends KindConfig = KindConfig>(source: KindSource, { bare = true } = {}): z.ZodType<T> {
  const error = `choose a kind of ${source.what}: ${bare ? 'its name, or ' : ''}an object with kind and options`;
  return (bare ? z.union([z.string(), named], { error }) : named).transform((value, ctx): T => {
    const { kind, ...options } = typeof value === 'string' ? { kind: value } : value;
    const known = source.find(kind);
    if (!known) {
      const message = `unknown ${source.what} '${kind}': choose from ${source.names().join(', ')}`;
      ctx.addIssue({ code: 'custom', message });
      return z.NEVER;
    }
    const parsed = known.options.safeParse(options);
    if (!parsed.success) {
      for (const issue of parsed.error.issues)
        ctx.addIssue({ code: 'custom', message: issue.message, path: [...issue.path] as (string | number)[] });
      return z.NEVER;
    }
    return { kind, ...(parsed.data as object) } as T;
  });
}
