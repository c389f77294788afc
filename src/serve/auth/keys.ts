/** API keys: only their SHA-256 is kept; each may have scopes, models and rates of its own. */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import { chmodSync, existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { z } from 'zod';
import { AnsatzError } from '../../backend/errors.ts';
import { describeIssues } from '../../model/spec.ts';

/** What keys may be allowed to do. Listing models is open to every key. */
export const SCOPES = ['inference', 'files', 'fine-tuning', 'metrics'] as const;
export type Scope = (typeof SCOPES)[number];

const recordSchema = z.strictObject({
  name: z.string().min(1).max(100),
  /** SHA-256 of the key in hex. */
  sha256: z.string().regex(/^[0-9a-f]{64}$/, 'must be 64 hex digits'),
  /** All of them when absent. */
  scopes: z.array(z.enum(SCOPES)).optional(),
  /** Names of models that it may use; a name that ends with * stands for all that begin so. All when absent. */
  models: z.array(z.string().min(1)).optional(),
  requestsPerMinute: z.number().min(1).optional(),
  tokensPerMinute: z.number().positive().optional(),
});
export type KeyRecord = z.output<typeof recordSchema>;
const fileSchema = z.strictObject({ keys: z.array(recordSchema) });

const sha256 = (text: string): Buffer => createHash('sha256').update(text).digest();

export class Keys {
  private readonly records: readonly { readonly record: KeyRecord; readonly hash: Buffer }[];

  constructor(records: readonly KeyRecord[]) {
    const names = records.map((r) => r.name);
    const twin = names.find((name, k) => names.indexOf(name) < k);
    // Rates and logs go by the name.
    if (twin !== undefined) throw new AnsatzError(`two keys are called ${twin}`, { hint: 'give one another name' });
    this.records = records.map((record) => ({ record, hash: Buffer.from(record.sha256, 'hex') }));
  }

  get size(): number {
    return this.records.length;
  }

  /** Whose key it is. Every record is compared, in constant time: how long it takes says nothing. */
  find(key: string): KeyRecord | null {
    const hash = sha256(key);
    let found: KeyRecord | null = null;
    for (const { record, hash: own } of this.records) if (timingSafeEqual(own, hash)) found = record;
    return found;
  }
}

export const allows = (key: KeyRecord, scope: Scope): boolean => key.scopes === undefined || key.scopes.includes(scope);

export const allowsModel = (key: KeyRecord, model: string): boolean =>
  key.models === undefined ||
  key.models.some((m) => (m.endsWith('*') ? model.startsWith(m.slice(0, -1)) : m === model));

/** A record for a key that was given in the open. */
export const recordOf = (name: string, key: string): KeyRecord => ({ name, sha256: sha256(key).toString('hex') });

/** @throws AnsatzError when the file is missing or not a list of keys. */
export function readKeys(path: string): KeyRecord[] {
  let json: unknown;
  try {
    json = JSON.parse(readFileSync(path, 'utf8'));
  } catch (cause) {
    const missing = (cause as NodeJS.ErrnoException).code === 'ENOENT';
    throw new AnsatzError(`${path}: ${missing ? 'there is no such file of keys' : 'is not a file of keys'}`, {
      hint: 'ansatz serve --new-key NAME --keys FILE',
      cause,
    });
  }
  const parsed = fileSchema.safeParse(json);
  if (!parsed.success)
    throw new AnsatzError(`${path}: ${describeIssues(parsed.error)}`, {
      hint: 'docs/serve.md says what a key may have',
    });
  return parsed.data.keys;
}

/** Makes a key, adds its hash to the file, and returns it: nobody can read it from there. */
export function addKey(path: string, name: string): string {
  const keys = existsSync(path) ? readKeys(path) : [];
  if (keys.some((k) => k.name === name))
    throw new AnsatzError(`${path}: has a key named ${name} already`, { hint: 'choose another name' });
  const key = `sk-${randomBytes(32).toString('base64url')}`;
  const draft = `${path}.${process.pid}.tmp`;
  try {
    writeFileSync(draft, `${JSON.stringify({ keys: [...keys, recordOf(name, key)] }, null, 2)}\n`, { mode: 0o600 });
    chmodSync(draft, 0o600);
    renameSync(draft, path);
  } catch (cause) {
    throw new AnsatzError(`${path}: cannot be written: ${(cause as Error).message}`, { cause });
  }
  return key;
}
