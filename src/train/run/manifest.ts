// manifest.json: what a checkpoint directory must contain, byte for byte. It is written last, and sealed with a hash
// of its own content so that damage to the manifest itself is seen too.
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { AnsatzError } from '../../backend/errors.ts';
import { hashOf } from './canonical.ts';
import { Remembered } from './verified.ts';

export interface FileEntry {
  bytes: number;
  sha256: string;
}

export interface Manifest {
  format: 'ansatz-checkpoint';
  version: 1;
  step: number;
  /** Hash of the run's config. */
  config: string;
  created: string;
  files: { [name: string]: FileEntry };
  seal: string;
}

/**
 * size: files exist with the right sizes; full: their hashes are right too (reads everything once); once: full, unless
 * these very files were found right before (verified.ts).
 */
export type Verify = 'size' | 'full' | 'once';

const HINT = 'resume without naming a checkpoint: the newest intact one is then taken';

export function sealManifest(content: Pick<Manifest, 'step' | 'config' | 'created' | 'files'>): Manifest {
  const unsealed = { format: 'ansatz-checkpoint', version: 1, ...content } as const;
  return { ...unsealed, seal: hashOf(unsealed) };
}

export async function verifyCheckpoint(folder: string, verify: Verify = 'full'): Promise<Manifest> {
  const manifest = await readManifest(folder);
  const remembered = verify === 'once' ? await Remembered.of(folder, manifest.seal) : undefined;
  for (const [name, { bytes, sha256 }] of Object.entries(manifest.files)) {
    const path = join(folder, name);
    const found = await stat(path, { bigint: true }).catch(() => undefined);
    if (!found?.isFile()) throw damaged(folder, `${name} is missing`);
    if (found.size !== BigInt(bytes)) throw damaged(folder, `${name} has ${found.size} bytes instead of ${bytes}`);
    if (verify === 'size' || remembered?.knows(name, found)) continue;
    if ((await hashFile(folder, name)) !== sha256)
      throw damaged(folder, `the content of ${name} was altered (sha256 differs)`);
    remembered?.add(name, found);
  }
  await remembered?.save();
  return manifest;
}

async function readManifest(folder: string): Promise<Manifest> {
  let text: string;
  try {
    text = await readFile(join(folder, 'manifest.json'), 'utf8');
  } catch (error) {
    const exists = await stat(folder).catch(() => undefined);
    if (!exists) throw new AnsatzError(`${folder}: there is no such checkpoint`, { hint: HINT, cause: error });
    throw damaged(folder, `manifest.json cannot be read (${(error as NodeJS.ErrnoException).code})`);
  }
  let manifest: Manifest;
  try {
    const { seal, ...content } = JSON.parse(text) as Manifest;
    if (content.format !== 'ansatz-checkpoint' || hashOf(content) !== seal) throw new Error('seal');
    manifest = { ...content, seal };
  } catch {
    throw damaged(folder, 'manifest.json is incomplete or was altered');
  }
  if (manifest.version !== 1) {
    throw new AnsatzError(`${folder}: is a checkpoint of format version ${manifest.version}, this program reads 1`);
  }
  if (Number(basename(folder)) !== manifest.step) {
    throw damaged(folder, `it was renamed (its manifest says step ${manifest.step})`);
  }
  return manifest;
}

async function hashFile(folder: string, name: string): Promise<string> {
  const hash = createHash('sha256');
  try {
    for await (const chunk of createReadStream(join(folder, name), { highWaterMark: 4 << 20 })) hash.update(chunk);
  } catch (error) {
    throw damaged(folder, `${name} cannot be read (${(error as NodeJS.ErrnoException).code})`);
  }
  return hash.digest('hex');
}

export function damaged(folder: string, why: string): AnsatzError {
  return new AnsatzError(`${folder}: checkpoint is damaged: ${why}`, { hint: HINT });
}
