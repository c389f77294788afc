/** ansatz lab: comparisons of many trainings. */
import { availableParallelism } from 'node:os';
import { Command } from 'commander';
import { USUAL_WIDTH } from '../../lab/first-look/base.ts';
import { action, number, type OutputFlags } from '../common.ts';
import { UsageError } from '../term/output.ts';

export interface FirstLookFlags extends OutputFlags {
  out?: string;
  from?: string;
  run: string;
  minutes: number;
  seeds: number;
  only?: string[];
  cap: number;
  width: number;
  workers: number;
}

export const USUAL_OUT = 'docs/verdicts/first-look.md';
export const USUAL_RUN = 'runs/first-look';

const whole =
  (least: number) =>
  (n: number): boolean =>
    Number.isInteger(n) && n >= least;

const names = (text: string): string[] => {
  const list = text.split(',').map((name) => name.trim());
  if (list.some((name) => name === '')) throw new UsageError(`--only wants names with commas, not '${text}'`);
  return [...new Set(list)];
};

export function labCommand(): Command {
  const look = new Command('first-look')
    .description('Train every trick and the dense base on text: held-out loss at equal positions and in equal time.')
    .argument('[texts...]', 'folders, text files, .jsonl or .jsonl.gz: a corpus each, as many bytes of each')
    .option('--out <file>', `the verdict; a plot and all numbers go beside it (default: ${USUAL_OUT})`)
    .option('--run <folder>', 'where data and results are kept; goes on with what is there', USUAL_RUN)
    .option('--from <file>', 'train nothing: verdicts anew from the numbers (.json) of an earlier one')
    .option('--minutes <n>', 'time for all of it', number('--minutes'), 18)
    .option('--seeds <n>', 'runs of each arm; the base and its control have more', number('--seeds', whole(2)), 3)
    .option('--only <names>', 'these arms only, with commas; the base and its control always run', names)
    .option('--cap <MB>', 'megabytes of text in all', number('--cap'), 16)
    .option(
      '--width <n>',
      'width of the base, a multiple of 32',
      number('--width', (n) => n > 0 && n % 32 === 0),
      USUAL_WIDTH,
    )
    .option(
      '--workers <n>',
      'processes of one thread; by default as many as cores',
      number('--workers', whole(1)),
      availableParallelism(),
    )
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz lab first-look wikipedia.jsonl.gz textbooks.jsonl.gz\n  ansatz lab first-look ~/notes --minutes 5 --only moe,alibi,muon --out notes.md\n  ansatz lab first-look ~/notes --seeds 4 --minutes 40 --run runs/look-4 --json\n  ansatz lab first-look --from docs/verdicts/first-look.json\n\nStopped with Ctrl-C, the same command goes on.',
    );
  action(look, async (output, texts: string[], flags: FirstLookFlags) => {
    if (flags.from !== undefined) {
      if (texts.length > 0) throw new UsageError('--from trains nothing, so it takes no text');
      const { recompute } = await import('../actions/first-look-verdict.ts');
      return recompute(output, flags.from, flags.out);
    }
    if (texts.length === 0) throw new UsageError("missing required argument 'texts'");
    const { runFirstLook } = await import('../actions/first-look.ts');
    await runFirstLook(output, texts, flags);
  });
  return new Command('lab')
    .description('Comparisons of many trainings.')
    .helpCommand(false)
    .addCommand(look)
    .addHelpText('after', '\nExamples:\n  ansatz lab first-look ~/notes\n  ansatz lab first-look --help');
}
