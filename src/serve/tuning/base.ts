/** What a job starts from where that is not the newest weights of a run: a run starts from no others. */
import { copyFile, mkdir, readdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { COMPANIONS } from '../../infer/formats/chat-files.ts';
import { checkpointPath, listCheckpoints } from '../../train/run/checkpoint.ts';
import { RunFolder } from '../../train/run/folder.ts';

/** Whether `step` names a checkpoint with newer ones behind it. */
export const isEarlier = (path: string, step: number | undefined): step is number =>
  step !== undefined && step !== Math.max(...listCheckpoints(RunFolder.open(path)));

/** Makes `folder` a run that has the one checkpoint, and else is as the one in `path`. */
export async function copyAt(path: string, step: number, folder: string): Promise<void> {
  const from = checkpointPath(RunFolder.open(path), step);
  await mkdir(folder, { recursive: true });
  const wanted = new Set(['config.json', 'tokenizer.json', ...COMPANIONS]);
  for (const name of await readdir(path)) if (wanted.has(name)) await copyFile(join(path, name), join(folder, name));
  const to = checkpointPath(RunFolder.open(folder), step);
  await mkdir(dirname(to), { recursive: true });
  await mkdir(to);
  for (const name of await readdir(from)) await copyFile(join(from, name), join(to, name));
}
