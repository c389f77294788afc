/** Loads the native addon, once, and types its boundary. Nothing else in src/ knows its shape. */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { AnsatzError } from './errors.ts';

export interface NativeFacts {
  cpu: string;
  level: string;
  levels: string[];
  threads: number;
  cachedBytes: number;
}

/** A program that lives in native memory until it is collected. */
export type NativeProgram = { readonly __brand: 'program' };

export interface Native {
  attach(words: Float64Array): void;
  exec(): void;
  allocate(bytes: number): number;
  release(address: number, bytes: number): void;
  /** 0: the file cannot be mapped here. */
  map(fd: number, bytes: number, path: string): number;
  unmap(address: number, bytes: number): void;
  write(address: number, data: ArrayBufferView): void;
  read(address: number, out: ArrayBufferView): void;
  program(words: Float64Array): NativeProgram;
  run(program: NativeProgram, profile: boolean): Promise<Float64Array | undefined>;
  kernels(): string[];
  facts(): NativeFacts;
  useLevel(level: string): boolean;
  useThreads(threads: number): void;
  trim(): void;
  [text: string]: unknown;
}

let loaded: Native | undefined;

/** Where the addon is looked for: next to a bundle, or in the checkout's build folder. */
function candidates(): string[] {
  const here = dirname(fileURLToPath(import.meta.url));
  return [
    process.env.ANSATZ_NATIVE,
    join(here, 'ansatz.node'),
    join(here, '..', 'build', 'ansatz.node'),
    join(here, '..', '..', 'build', 'ansatz.node'),
  ].filter((path): path is string => !!path);
}

/**
 * The native addon.
 * @throws AnsatzError when it has not been built, or was built for another platform.
 */
export function native(): Native {
  if (loaded) return loaded;
  const named = process.env.ANSATZ_NATIVE;
  if (named && !existsSync(named))
    throw new AnsatzError(`ANSATZ_NATIVE names ${named}, and there is no such file`, {
      hint: 'unset ANSATZ_NATIVE, or correct it',
    });
  const path = candidates().find(existsSync);
  if (!path) throw new AnsatzError('the native addon is not built', { hint: 'npm run build' });
  try {
    loaded = createRequire(import.meta.url)(path) as Native;
  } catch (cause) {
    const why = cause instanceof Error ? cause.message.split('\n')[0] : String(cause);
    throw new AnsatzError(`the native addon does not load: ${why}`, { hint: 'npm run build', cause });
  }
  return loaded;
}
