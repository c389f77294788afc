/** Talks to a PyTorch process (bench/peers/torch_peer.py). Absent PyTorch is no error: rows then have no peer. */
import { type ChildProcess, spawn } from 'node:child_process';
import { dirname, join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const script = join(dirname(fileURLToPath(import.meta.url)), 'peers', 'torch_peer.py');

export class Torch {
  readonly name: string;
  private readonly child: ChildProcess;
  private readonly lines: AsyncIterator<string>;

  private constructor(child: ChildProcess, reader: Interface, version: string) {
    this.child = child;
    this.lines = reader[Symbol.asyncIterator]();
    this.name = version;
  }

  /** Starts the peer with $PEER_PYTHON or python3; null when that has no torch. */
  static async start(): Promise<Torch | null> {
    const child = spawn(process.env.PEER_PYTHON || 'python3', [script], { stdio: ['pipe', 'pipe', 'ignore'] });
    const failed = new Promise<null>((done) => {
      child.on('error', () => done(null));
      child.on('exit', () => done(null));
    });
    child.stdin.on('error', () => {}); // it may be gone before it reads
    const torch = new Torch(child, createInterface({ input: child.stdout }), '');
    const hello = await Promise.race([torch.ask({ op: 'version' }), failed]);
    if (!hello?.version) return null;
    return Object.assign(torch, { name: `pytorch ${hello.version}` });
  }

  async ask(request: object): Promise<Record<string, number & string>> {
    this.child.stdin!.write(`${JSON.stringify(request)}\n`);
    const { value } = await this.lines.next();
    return value ? JSON.parse(value) : {};
  }

  stop(): void {
    this.child.stdin!.end();
  }
}

export const noTorch = 'no PyTorch found: set PEER_PYTHON to a python that imports torch';
