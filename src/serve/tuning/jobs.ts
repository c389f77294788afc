/**
 * Fine-tuning jobs. A job is a folder: job.json says how it stands and is replaced as a whole, events.jsonl grows by
 * lines, run/ is an ordinary run folder. One job trains at a time, in a process of its own; what a killed server or a
 * killed process leaves behind is taken up from the run's last checkpoint.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { appendFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { checkpointPath, listCheckpoints } from '../../train/run/checkpoint.ts';
import type { RunEvent } from '../../train/run/events.ts';
import { replaceFile } from '../../train/run/files.ts';
import { RunFolder } from '../../train/run/folder.ts';
import type { FileStore } from '../files/store.ts';
import { ApiError } from '../http/errors.ts';
import { newId, seconds } from '../http/ids.ts';
import type { Registry } from '../models/registry.ts';
import { copyAt, isEarlier } from './base.ts';
import {
  checkpointName,
  ended,
  type Hyperparameters,
  type Job,
  type JobEvent,
  type JobRequest,
  type JobSpec,
} from './job.ts';
import { Progress } from './progress.ts';
import type { WorkerMessage } from './worker.ts';

const ENTRY = fileURLToPath(new URL('./worker-entry.mjs', import.meta.url));
const ID = /^ftjob-[A-Za-z0-9]{24}$/;
/** Times that a process may go without a word before its job fails, with no checkpoint in between. */
const MAX_LOSSES = 5;

interface Running {
  readonly job: Job;
  readonly child: ChildProcess;
  readonly over: Promise<void>;
}

export class TuningJobs {
  private readonly folder: string;
  private readonly files: FileStore;
  private readonly registry: Registry;
  private readonly unforeseen: (error: unknown) => void;
  private readonly jobs = new Map<string, Job>();
  private readonly log = new Map<string, JobEvent[]>();
  /** Writes of a job's state come one after the other. */
  private readonly writes = new Map<string, Promise<void>>();
  private readonly losses = new Map<string, number>();
  private running: Running | null = null;
  private closed = false;

  constructor(folder: string, files: FileStore, registry: Registry, unforeseen: (error: unknown) => void) {
    [this.folder, this.files, this.registry, this.unforeseen] = [folder, files, registry, unforeseen];
    mkdirSync(folder, { recursive: true });
    const found = readdirSync(folder).flatMap((name) => {
      // What was being written when a server was killed.
      if (name.startsWith('.ftjob-')) rmSync(join(folder, name), { recursive: true, force: true });
      const path = join(folder, name, 'job.json');
      if (!ID.test(name) || !existsSync(path)) return [];
      try {
        return [JSON.parse(readFileSync(path, 'utf8')) as Job];
      } catch {
        return []; // hides itself and nothing else
      }
    });
    for (const job of found.sort((a, b) => a.created - b.created || (a.spec.id < b.spec.id ? -1 : 1))) {
      this.jobs.set(job.spec.id, job);
      if (job.status === 'running' || job.status === 'validating_files') {
        this.note(job, 'info', 'The server was started again; the job goes on.');
        job.status = 'queued';
      }
      if (job.status === 'succeeded' && !job.deleted) this.serve(job);
    }
  }

  /** Takes up what is waiting. */
  start(): void {
    this.next();
  }

  /** Newest first. */
  list(): Job[] {
    return [...this.jobs.values()].reverse();
  }

  get(id: string): Job | undefined {
    return this.jobs.get(id);
  }

  /** Newest first. */
  events(job: Job): JobEvent[] {
    return [...this.eventsOf(job.spec.id)].reverse();
  }

  async create(r: JobRequest): Promise<Job> {
    const info = this.registry.info(r.model);
    const path = this.registry.pathOf(r.model);
    if (!info || path === undefined)
      throw new ApiError(400, `The model '${r.model}' cannot be fine-tuned: there is none.`, {
        param: 'model',
        code: 'model_not_found',
      });
    const contents = async (id: string, param: string): Promise<Buffer> => {
      const file = this.files.get(id);
      if (!file) throw new ApiError(400, `'${param}': there is no file ${id}`, { param, code: 'invalid_file' });
      if (file.purpose !== 'fine-tune')
        throw new ApiError(400, `'${param}': ${id} was uploaded for '${file.purpose}', not 'fine-tune'`, { param });
      return this.files.content(file);
    };
    const training = await contents(r.training_file, 'training_file');
    const validation = r.validation_file ? await contents(r.validation_file, 'validation_file') : null;
    const asked: Partial<Hyperparameters> = r.method?.supervised?.hyperparameters ?? r.hyperparameters ?? {};
    const id = newId('ftjob-');
    // A model that was adapted before keeps its first name.
    const root = r.model.startsWith('ft:') ? r.model.split(':')[1] : r.model;
    const step = this.registry.stepOf(r.model);
    const earlier = isEarlier(path, step);
    const base = earlier ? join(this.pathOf(id), 'base') : path;
    const spec: JobSpec = {
      ...{ id, base, name: `ft-${id.slice(6, 14)}`, validation: validation !== null, adapter: asked.adapter ?? null },
      seed: r.seed ?? Math.floor(Math.random() * 2 ** 31),
      hyperparameters: {
        batch_size: asked.batch_size ?? 'auto',
        learning_rate_multiplier: asked.learning_rate_multiplier ?? 'auto',
        n_epochs: asked.n_epochs ?? 'auto',
      },
    };
    const job: Job = {
      ...{ spec, model: r.model, tuned: `ft:${root}:${r.suffix ?? ''}:${id.slice(6, 14)}`, created: seconds() },
      ...{ trainingFile: r.training_file, validationFile: r.validation_file ?? null },
      ...{ suffix: r.suffix ?? null, metadata: r.metadata ?? null },
      ...{ status: 'validating_files', finished: null, estimated: null, error: null, trainedTokens: null },
      ...{ resultFiles: [], chosen: null, checkpoints: [], deleted: false },
    };
    const draft = join(this.folder, `.${id}`);
    await mkdir(draft);
    // The job keeps its own copies: files may be deleted while it waits.
    if (earlier) await copyAt(path, step, join(draft, 'base'));
    await writeFile(join(draft, 'training.jsonl'), training);
    if (validation) await writeFile(join(draft, 'validation.jsonl'), validation);
    await writeFile(join(draft, 'spec.json'), JSON.stringify(spec));
    await replaceFile(join(draft, 'job.json'), JSON.stringify(job));
    await rename(draft, this.pathOf(id));
    this.jobs.set(id, job);
    this.note(job, 'info', `Created fine-tuning job: ${id}`);
    this.note(
      job,
      'info',
      `Validating training file: ${r.training_file}${r.validation_file ? ` and validation file: ${r.validation_file}` : ''}`,
    );
    this.next();
    return job;
  }

  /** Ends a job, or leaves it for later. */
  async halt(job: Job, status: 'cancelled' | 'paused'): Promise<Job> {
    if (ended(job) || job.status === status)
      throw new ApiError(400, `The job is ${job.status}: it cannot be ${status} any more.`, { code: 'job_ended' });
    job.status = status;
    job.estimated = null;
    if (status === 'cancelled') job.finished = seconds();
    this.note(job, 'info', `Fine-tuning job ${status}`);
    await this.save(job);
    if (this.running?.job === job) {
      this.running.child.kill('SIGTERM');
      await this.running.over;
    }
    return job;
  }

  async resume(job: Job): Promise<Job> {
    if (job.status !== 'paused')
      throw new ApiError(400, `The job is ${job.status}, not paused.`, { code: 'job_not_paused' });
    job.status = 'queued';
    this.note(job, 'info', 'Fine-tuning job resumed');
    await this.save(job);
    this.next();
    return job;
  }

  /** Forgets a model that a job made, with its checkpoints, or one of these; and frees its place on the disk. */
  async deleteModel(name: string): Promise<void> {
    const job = this.list().find((j) => j.tuned === name);
    if (!job) return this.deleteCheckpoint(name);
    const names = [job.tuned, ...job.checkpoints.map((c) => checkpointName(job, c.step))];
    for (const one of names) await this.registry.remove(one);
    job.deleted = true;
    job.checkpoints = [];
    await this.save(job);
    for (const part of ['run', 'data', 'base'])
      await rm(join(this.pathOf(job.spec.id), part), { recursive: true, force: true });
  }

  private async deleteCheckpoint(name: string): Promise<void> {
    await this.registry.remove(name);
    for (const job of this.jobs.values()) {
      const gone = job.checkpoints.find((c) => checkpointName(job, c.step) === name);
      if (!gone) continue;
      job.checkpoints = job.checkpoints.filter((c) => c !== gone);
      await this.save(job);
      const run = RunFolder.open(join(this.pathOf(job.spec.id), 'run'));
      // The newest is the model itself.
      if (isEarlier(run.path, gone.step)) await rm(checkpointPath(run, gone.step), { recursive: true, force: true });
    }
  }

  /** Asks the job that is training to save and stop, and waits for it. */
  async close(): Promise<void> {
    this.closed = true;
    this.running?.child.kill('SIGTERM');
    await this.running?.over;
    await Promise.all(this.writes.values());
  }

  private pathOf(id: string): string {
    return join(this.folder, id);
  }

  private next(): void {
    if (this.running || this.closed) return;
    const job = [...this.jobs.values()].find((j) => j.status === 'validating_files' || j.status === 'queued');
    if (!job) return;
    this.running = this.launch(job);
    this.running.over.catch(this.unforeseen).finally(() => {
      this.running = null;
      this.next();
    });
  }

  private launch(job: Job): Running {
    const child = fork(ENTRY, [this.pathOf(job.spec.id)], { stdio: ['ignore', 'ignore', 'pipe', 'ipc'], execArgv: [] });
    let words = '';
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      words = (words + text).slice(-2000);
    });
    let said: WorkerMessage | null = null;
    const progress = new Progress();
    child.on('message', (message: WorkerMessage) => {
      if (message.kind !== 'event') said = message;
      if (!ended(job) && job.status !== 'paused') this.hear(job, message, progress);
    });
    const over = new Promise<string>((done) => {
      child.on('error', (error) => done(error.message));
      child.on('close', (code, signal) => done(signal ?? `exit code ${code}`));
    }).then((how) => this.settle(job, said, how, words, progress));
    return { job, child, over };
  }

  /** A word from the training process. */
  private hear(job: Job, message: WorkerMessage, progress: Progress): void {
    if (message.kind === 'prepared') {
      const { batch, epochs, multiplier, warnings, examples, tokens } = message.prepared;
      const first = job.chosen === null;
      job.status = 'running';
      job.chosen = { batch_size: batch, learning_rate_multiplier: multiplier, n_epochs: epochs };
      progress.begin(message.steps, tokens * epochs);
      if (first) {
        for (const warning of warnings) this.note(job, 'warn', warning);
        this.note(job, 'info', `Files validated: ${examples} examples, ${tokens} tokens, ${message.steps} steps`);
        this.note(job, 'info', 'Fine-tuning job started');
      }
      this.later(job);
    } else if (message.kind === 'event') this.hearRun(job, message.event, progress);
  }

  private hearRun(job: Job, event: RunEvent, progress: Progress): void {
    if (event.event === 'step') {
      job.estimated = progress.step(event);
      const data = progress.metrics();
      if (data)
        this.note(job, 'info', `Step ${event.step}/${progress.steps}: training loss=${event.loss.toFixed(4)}`, data);
    } else if (event.event === 'eval') progress.evaluated(event.step, event.loss);
    else if (event.event === 'resumed') {
      job.checkpoints = job.checkpoints.filter((c) => c.step <= event.step);
      this.note(job, 'info', `Going on from step ${event.step}`);
    } else if (event.event === 'warning') this.note(job, 'warn', event.message);
    else if (event.event === 'checkpoint') {
      this.losses.delete(job.spec.id);
      const kept = new Set(listCheckpoints(RunFolder.open(join(this.pathOf(job.spec.id), 'run'))));
      job.checkpoints = [
        ...job.checkpoints.filter((c) => kept.has(c.step) && c.step !== event.step),
        { id: newId('ftckpt_'), created: seconds(), step: event.step, metrics: progress.now() },
      ];
      this.later(job);
    }
  }

  /** The training process has ended. */
  private async settle(
    job: Job,
    said: WorkerMessage | null,
    how: string,
    words: string,
    progress: Progress,
  ): Promise<void> {
    if (ended(job) || job.status === 'paused') return this.save(job);
    if (said?.kind === 'invalid') return this.fail(job, 'invalid_training_file', said.message, said.param);
    if (said?.kind === 'failed') return this.fail(job, 'training_failed', said.message, null);
    if (said?.kind === 'ended' && said.completed) return this.succeed(job, progress);
    job.status = job.chosen ? 'queued' : 'validating_files';
    job.estimated = null;
    if (said?.kind === 'ended' || this.closed) return this.save(job); // it was asked to stop; it goes on another time
    const losses = (this.losses.get(job.spec.id) ?? 0) + 1;
    this.losses.set(job.spec.id, losses);
    const last = words.trim().split('\n').at(-1) ?? '';
    if (losses > MAX_LOSSES)
      return this.fail(job, 'training_failed', `The training process ended (${how}). ${last}`.trim(), null);
    this.note(job, 'warn', `The training process ended (${how}); going on from its last checkpoint`);
    await this.save(job);
  }

  private async fail(job: Job, code: string, message: string, param: string | null): Promise<void> {
    Object.assign(job, { status: 'failed', finished: seconds(), estimated: null, error: { code, message, param } });
    this.note(job, 'error', message);
    await this.save(job);
  }

  private async succeed(job: Job, progress: Progress): Promise<void> {
    const table = Buffer.from(progress.table(this.eventsOf(job.spec.id)));
    const file = await this.files.add('step_metrics.csv', 'fine-tune-results', table);
    Object.assign(job, { status: 'succeeded', finished: seconds(), estimated: null, trainedTokens: progress.tokens });
    job.resultFiles = [file.id];
    this.serve(job);
    this.note(job, 'info', `New fine-tuned model created: ${job.tuned}`);
    this.note(job, 'info', 'The job has successfully completed');
    await this.save(job);
  }

  /** Makes the model of a job one that requests can name; its checkpoints too, but they are not listed. */
  private serve(job: Job): void {
    const path = join(this.pathOf(job.spec.id), 'run');
    const info = { created: job.finished ?? job.created, owner: 'user', tuned: true };
    this.registry.addTuned({ ...info, name: job.tuned }, path);
    for (const { step } of job.checkpoints)
      this.registry.addTuned({ ...info, name: checkpointName(job, step), hidden: true }, path, step);
  }

  private eventsOf(id: string): JobEvent[] {
    let known = this.log.get(id);
    if (!known) {
      known = [];
      const path = join(this.pathOf(id), 'events.jsonl');
      for (const line of existsSync(path) ? readFileSync(path, 'utf8').split('\n') : []) {
        try {
          if (line) known.push(JSON.parse(line) as JobEvent);
        } catch {
          // The last line of a server that was killed may be half a line.
        }
      }
      this.log.set(id, known);
    }
    return known;
  }

  private note(job: Job, level: JobEvent['level'], message: string, data?: Record<string, unknown>): void {
    const event: JobEvent = {
      ...{ id: newId('ftevent-'), object: 'fine_tuning.job.event', created_at: seconds(), level, message },
      ...{ type: data ? 'metrics' : 'message', data: data ?? {} },
    };
    this.eventsOf(job.spec.id).push(event);
    try {
      // A line that was cut off by a kill must not swallow this one.
      appendFileSync(join(this.pathOf(job.spec.id), 'events.jsonl'), `\n${JSON.stringify(event)}`);
    } catch (error) {
      this.unforeseen(error);
    }
  }

  private later(job: Job): void {
    this.save(job).catch(this.unforeseen);
  }

  private save(job: Job): Promise<void> {
    const path = join(this.pathOf(job.spec.id), 'job.json');
    const before = this.writes.get(job.spec.id) ?? Promise.resolve();
    const written = before.catch(() => {}).then(() => replaceFile(path, JSON.stringify(job)));
    this.writes.set(job.spec.id, written);
    return written;
  }
}
