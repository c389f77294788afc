/** The weights of a Hugging Face folder: one safetensors file, or several with an index. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { AnsatzError } from '../../backend/errors.ts';
import { SafetensorsFile } from '../../train/safetensors.ts';
import type { FileTensor } from './blocks.ts';
import type { Json } from './hf-config.ts';

const WHOLE = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';

/** A JSON object from a file. */
export function readJson(path: string): Json {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    throw new AnsatzError(`${path}: ${code === 'ENOENT' ? 'is missing' : `cannot be read (${code})`}`, {
      hint: 'give a folder with config.json, tokenizer.json and safetensors files',
      cause,
    });
  }
  try {
    const json: unknown = JSON.parse(text);
    if (typeof json === 'object' && json !== null && !Array.isArray(json)) return json as Json;
  } catch {}
  throw new AnsatzError(`${path}: is not a JSON object`, { hint: 'copy the file again' });
}

export class HfWeights {
  private readonly files: SafetensorsFile[] = [];
  private readonly owner = new Map<string, SafetensorsFile>();

  private constructor() {}

  static async open(folder: string): Promise<HfWeights> {
    const weights = new HfWeights();
    try {
      if (existsSync(join(folder, WHOLE))) await weights.add(join(folder, WHOLE));
      else if (existsSync(join(folder, INDEX))) await weights.addIndexed(folder);
      else throw missing(folder);
      return weights;
    } catch (error) {
      await weights.close();
      throw error;
    }
  }

  private async add(path: string): Promise<SafetensorsFile> {
    const file = await SafetensorsFile.open(path);
    this.files.push(file);
    for (const name of file.names) {
      if (this.owner.has(name)) throw new AnsatzError(`${path}: tensor "${name}" is in another file of the index too`);
      this.owner.set(name, file);
    }
    return file;
  }

  private async addIndexed(folder: string): Promise<void> {
    const path = join(folder, INDEX);
    const map = readJson(path).weight_map;
    const entries = typeof map === 'object' && map !== null ? Object.entries(map) : [];
    if (entries.length === 0) throw new AnsatzError(`${path}: has no weight_map`, { hint: 'copy the file again' });
    for (const file of new Set(entries.map(([, file]) => file))) {
      // Nothing outside the folder is read, whatever the index says.
      if (typeof file !== 'string' || !/^[\w][\w.-]*\.safetensors$/.test(file))
        throw new AnsatzError(`${path}: ${JSON.stringify(file)} is not the name of a safetensors file`);
      await this.add(join(folder, file));
    }
    for (const [name, file] of entries)
      if (this.owner.get(name)?.path !== join(folder, file as string))
        throw new AnsatzError(`${path}: tensor "${name}" is not in ${file}`, { hint: 'copy the files again' });
  }

  get names(): string[] {
    return [...this.owner.keys()];
  }

  /** Element type of a tensor. */
  typeOf(name: string): string {
    return this.fileOf(name).info(name).dtype;
  }

  readonly fileOf = (name: string): SafetensorsFile => {
    const file = this.owner.get(name);
    if (!file) throw new AnsatzError(`the weights have no tensor "${name}"`);
    return file;
  };

  /** Every wanted tensor must be there with its shape, and nothing else that has a meaning. */
  check(wanted: readonly FileTensor[], idle: RegExp, folder: string): void {
    const copy = { hint: 'the files do not belong together or are incomplete: copy them again' };
    for (const { name, shape } of wanted) {
      const info = this.owner.get(name)?.info(name);
      if (!info) throw new AnsatzError(`${folder}: the weights have no tensor "${name}"`, copy);
      if (info.shape.join() !== shape.join())
        throw new AnsatzError(
          `${folder}: tensor "${name}" is [${info.shape.join(', ')}], config.json makes it [${shape.join(', ')}]`,
          copy,
        );
      if (!['F32', 'F16', 'BF16'].includes(info.dtype))
        throw new AnsatzError(`${folder}: tensor "${name}" is ${info.dtype}; F32, F16 and BF16 weights can be read`, {
          hint: 'import the original weights',
        });
    }
    const known = new Set(wanted.map((t) => t.name));
    const extra = this.names.find((name) => !known.has(name) && !idle.test(name));
    if (extra !== undefined)
      throw new AnsatzError(`${folder}: the weights have a tensor "${extra}", which such a model does not`, {
        hint: 'docs/export.md says what can be imported',
      });
  }

  async close(): Promise<void> {
    for (const file of this.files) await file.close();
  }
}

function missing(folder: string): AnsatzError {
  const other = existsSync(folder)
    ? readdirSync(folder).find((f) => /\.(bin|pt|pth|h5|msgpack|gguf)$/.test(f))
    : undefined;
  return new AnsatzError(`${folder}: has no ${WHOLE}${other ? `, only ${other}` : ''}`, {
    hint: other
      ? 'save the weights as safetensors'
      : 'give a folder with config.json, tokenizer.json and safetensors files',
  });
}
