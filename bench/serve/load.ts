/** The process that asks: many clients on an event loop of their own. Gets a job over IPC, answers with what came of it. */
import { Agent } from 'node:http';
import { type Answer, ask, type Endpoint } from './client.ts';
import { arrivals, askOf, type Work } from './work.ts';

export interface Job extends Endpoint {
  readonly work: Work;
  readonly first: number;
  readonly count: number;
  /** Clients that ask again as soon as they have an answer; or requests a second, which arrive whatever is answered. */
  readonly streams?: number;
  readonly rate?: number;
}

export interface Load {
  readonly answers: readonly Omit<Answer, 'pieces'>[];
  /** Tokens that came while all clients were busy, and the seconds of that. */
  readonly busyTokens: number;
  readonly busySeconds: number;
  readonly seconds: number;
}

export async function drive(job: Job): Promise<Load> {
  const agent = new Agent({ keepAlive: true, maxSockets: Number.POSITIVE_INFINITY });
  const answers: Answer[] = [];
  const asks = Array.from({ length: job.count }, (_, k) => askOf(job.work, job.first + k));
  const started = performance.now();
  let [next, busyUntil] = [0, Number.POSITIVE_INFINITY];
  const client = async (): Promise<void> => {
    for (let k = next++; k < asks.length; k = next++) answers.push(await ask(agent, job, asks[k], performance.now()));
    // The first that finds nothing left to ask.
    busyUntil = Math.min(busyUntil, performance.now());
  };
  if (job.rate === undefined) await Promise.all(Array.from({ length: job.streams ?? 1 }, client));
  else {
    const times = arrivals(job.rate, asks.length, job.work.seed);
    const arrive = (k: number): Promise<void> =>
      new Promise((done) => {
        const due = started + times[k];
        setTimeout(
          async () => {
            answers.push(await ask(agent, job, asks[k], due));
            done();
          },
          Math.max(0, due - performance.now()),
        );
      });
    await Promise.all(asks.map((_, k) => arrive(k)));
    busyUntil = started + times[times.length - 1];
  }
  const ended = performance.now();
  agent.destroy();
  // A piece is a token, or a few whose bytes make one character.
  const busyTokens = answers.reduce(
    (n, { pieces, tokens }) => n + (tokens * pieces.filter((t) => t <= busyUntil).length) / Math.max(1, pieces.length),
    0,
  );
  return {
    answers: answers.map(({ pieces: _, ...rest }) => rest),
    busyTokens,
    busySeconds: (Math.min(ended, busyUntil) - started) / 1000,
    seconds: (ended - started) / 1000,
  };
}

if (process.send) {
  process.on('message', async (job: Job) => {
    process.send!(await drive(job));
  });
  process.on('disconnect', () => process.exit());
}
