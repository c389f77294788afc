// Changes a Hugging Face folder as others might have written it: other types, names, files, or plain damage.
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { toBfloats, toHalves } from '../../src/infer/formats/floats.ts';
import { type TensorSource, writeSafetensors } from '../../src/train/safetensors.ts';
import { readSafetensors } from './hf-reference.ts';

export interface Named {
  name: string;
  shape: number[];
  values: Float32Array;
  dtype: 'F32' | 'F16' | 'BF16';
}

const source = ({ name, shape, values, dtype }: Named): TensorSource => ({
  ...{ name, shape, dtype },
  data: () => (dtype === 'F32' ? values : dtype === 'F16' ? toHalves(values) : toBfloats(values)),
});

/** Tensors of a folder. */
export const tensorsIn = (folder: string): Named[] =>
  [...readSafetensors(join(folder, 'model.safetensors'))].map(([name, t]) => ({
    ...{ name, shape: t.shape, values: Float32Array.from(t.data), dtype: t.dtype as Named['dtype'] },
  }));

/** Writes the tensors that `change` makes of the old ones. */
export async function editTensors(folder: string, change: (all: Named[]) => Named[]): Promise<void> {
  const changed = change(tensorsIn(folder));
  await writeSafetensors(join(folder, 'model.safetensors'), changed.map(source), { format: 'pt' });
}

export function editJson(folder: string, file: string, change: (json: Record<string, unknown>) => object): void {
  const path = join(folder, file);
  writeFileSync(path, JSON.stringify(change(JSON.parse(readFileSync(path, 'utf8')))));
}

/** Spreads the weights over files with an index. */
export async function shard(folder: string, parts: number): Promise<void> {
  const all = tensorsIn(folder);
  const map: Record<string, string> = {};
  for (let k = 0; k < parts; k++) {
    const file = `model-0000${k + 1}-of-0000${parts}.safetensors`;
    const own = all.filter((_, n) => n % parts === k);
    await writeSafetensors(join(folder, file), own.map(source), {});
    for (const { name } of own) map[name] = file;
  }
  rmSync(join(folder, 'model.safetensors'));
  const size = all.reduce((n, t) => n + t.values.length * 4, 0);
  writeFileSync(
    join(folder, 'model.safetensors.index.json'),
    JSON.stringify({ metadata: { total_size: size }, weight_map: map }),
  );
}
