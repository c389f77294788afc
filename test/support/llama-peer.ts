// llama.cpp through node-llama-cpp, when it is installed in bench/peers/llama (it is no dependency of this project).
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { checkout } from './tiny-data.ts';

const folder = join(checkout, 'bench', 'peers', 'llama');

export const peerMissing = existsSync(join(folder, 'node_modules', 'node-llama-cpp'))
  ? undefined
  : `NOT COMPARED WITH llama.cpp: (cd bench/peers/llama && npm ci --omit=optional --ignore-scripts) installs it`;

/** The few parts of node-llama-cpp that are used. */
interface Peer {
  getLlama(options: object): Promise<{
    loadModel(options: object): Promise<PeerModel>;
    dispose(): Promise<void>;
  }>;
  resolveChatWrapper?: unknown;
}
export interface PeerModel {
  tokenize(text: string, special: boolean): number[];
  detokenize(tokens: readonly number[], special: boolean): string;
  createContext(options: object): Promise<{
    getSequence(): {
      controlledEvaluate(
        input: [number, object][],
      ): Promise<({ next: { logits?: Map<number, number> } } | undefined)[]>;
    };
    dispose(): Promise<void>;
  }>;
  readonly tokens: { bos: number | null; eos: number | null; shouldPrependBosToken: boolean };
  dispose(): Promise<void>;
}

export interface PeerHandle {
  load(path: string): Promise<PeerModel>;
  /** Logits [T][V] after each token. */
  logits(model: PeerModel, ids: readonly number[]): Promise<number[][]>;
  close(): Promise<void>;
}

export async function llamaPeer(): Promise<PeerHandle> {
  const path = createRequire(join(folder, 'index.js')).resolve('node-llama-cpp');
  const peer = (await import(pathToFileURL(path).href)) as Peer;
  const quiet = { progressLogs: false, logLevel: 'error', gpu: false, build: 'never', skipDownload: true };
  const llama = await peer.getLlama(quiet);
  return {
    load: (modelPath) => llama.loadModel({ modelPath, gpuLayers: 0, useMmap: true }),
    logits: async (model, ids) => {
      // Keys and values in f32, so that the weights' type is what is compared.
      const context = await model.createContext({
        ...{ contextSize: Math.max(64, ids.length + 1), sequences: 1, threads: 2, flashAttention: false },
        experimentalKvCacheKeyType: 'F32',
        experimentalKvCacheValueType: 'F32',
      });
      const out = await context
        .getSequence()
        .controlledEvaluate(ids.map((id) => [id, { generateNext: { logits: true, options: { temperature: 0 } } }]));
      await context.dispose();
      return out.map((row) => {
        const logits = row!.next.logits!;
        return Array.from({ length: logits.size }, (_, id) => logits.get(id)!);
      });
    },
    close: () => llama.dispose(),
  };
}
