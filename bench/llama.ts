/** llama.cpp through node-llama-cpp (bench/peers/llama), as a peer that takes turns with us. */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const folder = join(resolve(dirname(fileURLToPath(import.meta.url))), 'peers', 'llama');
export const noLlama = existsSync(join(folder, 'node_modules', 'node-llama-cpp'))
  ? null
  : 'llama.cpp is not installed: (cd bench/peers/llama && npm ci --omit=optional --ignore-scripts)';

export interface LlamaSequence {
  evaluate(tokens: readonly number[], options: object): AsyncIterable<number>;
  evaluateWithoutGeneratingNewTokens(tokens: readonly number[], options?: object): Promise<void>;
  clearHistory(): Promise<void>;
}
interface Context {
  getSequence(): LlamaSequence;
  dispose(): Promise<void>;
}
interface Loaded {
  createContext(options: object): Promise<Context>;
  detokenize(tokens: readonly number[]): string;
  dispose(): Promise<void>;
}

/** A GGUF file in llama.cpp, on the CPU. */
export async function openLlama(path: string): Promise<Loaded> {
  const entry = createRequire(join(folder, 'index.js')).resolve('node-llama-cpp');
  const { getLlama } = (await import(pathToFileURL(entry).href)) as {
    getLlama(o: object): Promise<{ loadModel(o: object): Promise<Loaded> }>;
  };
  const llama = await getLlama({
    progressLogs: false,
    logLevel: 'error',
    gpu: false,
    build: 'never',
    skipDownload: true,
  });
  return llama.loadModel({ modelPath: path, gpuLayers: 0, useMmap: true });
}

/** A model in llama.cpp; rates are tokens a second. */
export class Llama {
  private readonly model: Loaded;
  private readonly context: Context;
  private readonly sequence: LlamaSequence;

  private constructor(model: Loaded, context: Context) {
    [this.model, this.context] = [model, context];
    this.sequence = context.getSequence();
  }

  static async open(path: string, threads: number, contextSize: number): Promise<Llama> {
    const model = await openLlama(path);
    const context = await model.createContext({
      contextSize,
      batchSize: 512,
      sequences: 1,
      threads: { ideal: threads, min: threads },
    });
    return new Llama(model, context);
  }

  /** Decodes `count` tokens after a short prompt. */
  async decode(count: number): Promise<number> {
    await this.sequence.clearHistory();
    let n = 0;
    let start = 0;
    for await (const _ of this.sequence.evaluate([65, 66, 67, 68], { temperature: 0 })) {
      if (n === 0) start = performance.now();
      if (n++ === count) break;
    }
    return (1000 * count) / (performance.now() - start);
  }

  /** Reads a prompt of `count` tokens. */
  async prefill(count: number): Promise<number> {
    await this.sequence.clearHistory();
    const start = performance.now();
    await this.sequence.evaluateWithoutGeneratingNewTokens(Array.from({ length: count }, (_, k) => 300 + (k % 200)));
    return (1000 * count) / (performance.now() - start);
  }

  async close(): Promise<void> {
    await this.context.dispose();
    await this.model.dispose();
  }
}
