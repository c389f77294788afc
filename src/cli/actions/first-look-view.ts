/** What `ansatz lab first-look` shows while it runs: arms, speeds, the plan, every training as it ends. */
import { type Arm, BASE } from '../../lab/first-look/arms.ts';
import type { PlanFile } from '../../lab/first-look/folder.ts';
import { LEAST_STEPS, type Run } from '../../lab/first-look/plan.ts';
import { formatCount, formatDuration } from '../term/format.ts';
import type { Output } from '../term/output.ts';
import type { Progress } from '../term/progress.ts';

export class SweepView {
  private readonly output: Output;
  private bar: Progress | undefined;
  private measured = 0;
  private total = 0;
  private finished = 0;
  private readonly running = new Map<string, number>();
  private perStep = new Map<string, number>();

  constructor(output: Output) {
    this.output = output;
  }

  arms(arms: readonly Arm[]): void {
    this.perStep = new Map(arms.map((a) => [a.name, a.positionsPerStep]));
    const refused = arms.filter((a) => a.refused);
    this.output.say(`arms       ${arms.length - refused.length} to compare, ${refused.length} refused`);
    for (const a of refused) this.output.say(`           ${a.name}: ${a.refused}`);
  }

  speed(arm: string, ratio: number | undefined, failed: string | undefined): void {
    this.bar ??= this.output.progress({
      label: 'measuring speeds',
      total: this.perStep.size,
      unit: 'arms',
      quiet: true,
    });
    this.bar.update(++this.measured);
    this.event('speed', { arm, ratio, failed });
    if (failed) this.output.say(`           ${arm} cannot be trained: ${failed}`);
  }

  plan(plan: PlanFile, arms: readonly Arm[], missing: readonly Run[]): void {
    this.close();
    const base = arms.find((a) => a.name === BASE)!;
    const seconds = missing.reduce((n, r) => n + r.seconds, 0) / plan.settings.workers;
    const positions = (run: Run): number => run.steps * this.perStep.get(run.arm)!;
    this.total = missing.reduce((n, r) => n + positions(r), 0);
    const left = missing.length < plan.runs.length ? `, ${missing.length} still to do` : '';
    this.output.say([
      `plan       ${plan.runs.length} trainings${left}: about ${formatDuration(seconds)} on ${plan.settings.workers} processes, ${formatCount(this.total)} tokens`,
      `           the base: ${formatCount(base.parameters)} parameters, ${plan.steps} steps of ${base.positionsPerStep} tokens (${formatCount(plan.steps * base.positionsPerStep)})`,
    ]);
    if (plan.steps <= LEAST_STEPS)
      this.output.warn(
        `${plan.steps} steps of the base are no training: the verdict will say little`,
        'raise --minutes',
      );
    const busy = plan.speeds[BASE];
    if ('busy' in busy && busy.busy > 1.15)
      this.output.warn(
        `other programs use this machine: a step takes ${busy.busy.toFixed(1)} times its processor time`,
        'stop them, or expect this to take longer',
      );
    this.event('plan', { runs: plan.runs.length, missing: missing.length, steps: plan.steps, seconds });
    if (missing.length > 0) this.bar = this.output.progress({ label: 'training', total: this.total, unit: 'tokens' });
  }

  steps(run: Run, steps: number): void {
    this.running.set(run.id, steps * this.perStep.get(run.arm)!);
    this.show();
  }

  done(run: Run, bits: number | undefined, seconds: number | undefined, failed: string | undefined): void {
    this.running.delete(run.id);
    this.finished += run.steps * this.perStep.get(run.arm)!;
    this.show();
    this.event('run', { ...run, bitsPerByte: bits, trainSeconds: seconds, failed });
    const what = failed ?? `${bits!.toFixed(4)} bits/byte  ${run.steps} steps  ${formatDuration(seconds!)}`;
    const question = run.answers === 'time' ? 'equal time' : run.answers === 'positions' ? 'equal positions' : 'both';
    this.output.say(`${run.arm.padEnd(24)} seed ${run.seed}  ${question.padEnd(15)}  ${what}`);
  }

  close(): void {
    this.bar?.finish();
    this.bar = undefined;
  }

  private show(): void {
    this.bar?.update(this.finished + [...this.running.values()].reduce((a, b) => a + b, 0));
  }

  private event(what: 'speed' | 'plan' | 'run', fields: object): void {
    this.output.emit({ event: 'lab', time: new Date().toISOString(), what, ...fields });
  }
}
