/**
 * llama.cpp behind the same endpoint, as far as the benchmark uses it: a process around node-llama-cpp, whose contexts
 * batch the sequences that are being decoded. Arguments: a GGUF file, sequences at a time, tokens of each.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { availableParallelism } from 'node:os';
import { type LlamaSequence, openLlama } from '../llama.ts';

const [path, sequences, context] = process.argv.slice(2);
const count = Number(sequences);
const threads = Number(process.env.ANSATZ_THREADS ?? availableParallelism());
const model = await openLlama(path);
const made = await model.createContext({
  ...{ contextSize: Number(context), batchSize: 512, sequences: count, threads: { ideal: threads, min: threads } },
});
const idle: LlamaSequence[] = Array.from({ length: count }, () => made.getSequence());
const waiting: ((s: LlamaSequence) => void)[] = [];
const take = (): Promise<LlamaSequence> => {
  const s = idle.pop();
  return s ? Promise.resolve(s) : new Promise((done) => waiting.push(done));
};
const giveBack = (s: LlamaSequence): void => {
  const next = waiting.shift();
  if (next) next(s);
  else idle.push(s);
};

interface Ask {
  readonly prompt: number[];
  readonly max_tokens: number;
  readonly temperature: number;
}

async function answer(r: Ask, out: ServerResponse): Promise<void> {
  const sequence = await take();
  try {
    const send = (data: object): void => {
      out.write(`data: ${JSON.stringify(data)}\n\n`);
    };
    out.socket?.setNoDelay(true);
    out.writeHead(200, { 'content-type': 'text/event-stream' });
    let tokens = 0;
    const options = { temperature: r.temperature, yieldEogToken: true };
    for await (const token of sequence.evaluate(r.prompt, options)) {
      const last = ++tokens === r.max_tokens;
      send({ choices: [{ text: model.detokenize([token]) || ' ', index: 0, finish_reason: last ? 'length' : null }] });
      if (last) break;
    }
    send({ choices: [], usage: { prompt_tokens: r.prompt.length, completion_tokens: tokens } });
    out.end('data: [DONE]\n\n');
  } finally {
    // At once: what attention reads grows with the cells that hold anything, whoever's they are.
    await sequence.clearHistory();
    giveBack(sequence);
  }
}

async function bodyOf(request: IncomingMessage): Promise<Ask> {
  let text = '';
  for await (const part of request.setEncoding('utf8')) text += part;
  return JSON.parse(text) as Ask;
}

const server = createServer((request, out) => {
  bodyOf(request)
    .then((r) => answer(r, out))
    .catch((error: Error) => {
      if (!out.headersSent) out.writeHead(500);
      out.end(error.message);
    });
});
server.listen(0, '127.0.0.1', () => {
  const { port } = server.address() as AddressInfo;
  process.stdout.write(`${JSON.stringify({ event: 'result', url: `http://127.0.0.1:${port}` })}\n`);
});
