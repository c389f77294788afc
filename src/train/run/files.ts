// The few file operations that crash safety rests on.
import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';

/** Makes names created in, renamed into or removed from a directory survive a power cut. */
export async function syncDirectory(path: string): Promise<void> {
  // Windows cannot open directories; its file systems order these operations themselves.
  if (process.platform === 'win32') return;
  await withFile(path, 'r', (directory) => directory.sync());
}

/** Writes and fsyncs a new file. */
export async function writeDurable(path: string, text: string): Promise<void> {
  await withFile(path, 'w', async (file) => {
    await file.writeFile(text);
    await file.sync();
  });
}

/** Replaces a file: readers see the old content or the new one, never a part. */
export async function replaceFile(path: string, text: string): Promise<void> {
  const draft = `${path}.draft-${process.pid}`;
  try {
    await writeDurable(draft, text);
    await rename(draft, path);
  } catch (error) {
    await rm(draft, { force: true });
    throw error;
  }
  await syncDirectory(dirname(path));
}

async function withFile(path: string, flags: string, use: (file: FileHandle) => Promise<void>): Promise<void> {
  const file = await open(path, flags);
  try {
    await use(file);
  } finally {
    await file.close();
  }
}
