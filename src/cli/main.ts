/** The command line: one file a command under commands/. */
import { Command, CommanderError } from 'commander';
import { distillCommand } from './commands/distill.ts';
import { evaluateCommand } from './commands/evaluate.ts';
import { exportCommand } from './commands/export.ts';
import { labCommand } from './commands/first-look.ts';
import { generateCommand } from './commands/generate.ts';
import { importCommand } from './commands/import.ts';
import { inspectCommand } from './commands/inspect.ts';
import { mupCommand } from './commands/mup.ts';
import { planCommand } from './commands/plan.ts';
import { prepareCommand } from './commands/prepare.ts';
import { pruneCommand } from './commands/prune.ts';
import { quantizeCommand } from './commands/quantize.ts';
import { quickstartCommand } from './commands/quickstart.ts';
import { serveCommand } from './commands/serve.ts';
import { trainCommand } from './commands/train.ts';
import { tricksCommand } from './commands/tricks.ts';
import { inThisShell } from './common.ts';
import { spoken } from './invocation.ts';
import { Output, UsageError } from './term/output.ts';

export function program(): Command {
  return new Command('ansatz')
    .description('Train, measure and use language models from Node.js.')
    .version('0.1.0', '--version', 'print the version')
    .helpOption('--help', 'show this help')
    .helpCommand(false)
    .showHelpAfterError(false)
    .addCommand(trainCommand())
    .addCommand(generateCommand())
    .addCommand(evaluateCommand())
    .addCommand(inspectCommand())
    .addCommand(planCommand())
    .addCommand(prepareCommand())
    .addCommand(tricksCommand())
    .addCommand(mupCommand())
    .addCommand(labCommand())
    .addCommand(exportCommand())
    .addCommand(importCommand())
    .addCommand(quantizeCommand())
    .addCommand(pruneCommand())
    .addCommand(distillCommand())
    .addCommand(serveCommand())
    .addCommand(quickstartCommand())
    .addHelpText(
      'after',
      '\nExamples:\n  ansatz quickstart\n  ansatz train tiny --data ~/notes\n  ansatz generate runs/quickstart --prompt "function "\n  ansatz inspect tiny\n\nEvery command has --help with examples, and --json for programs.',
    );
}

/** Parses and runs; sets the exit code: 0, 1 for a failure, 2 for a command line that was not understood. */
export async function main(argv: readonly string[]): Promise<void> {
  const root = program();
  for (const command of [root, ...root.commands, ...root.commands.flatMap((c) => c.commands)]) {
    command.exitOverride();
    command.configureOutput({ writeOut: (text) => process.stdout.write(spoken(text)), outputError: () => {} });
    command.helpOption('--help', 'show this help');
  }
  const output = new Output({ json: argv.includes('--json') });
  const known = root.commands.find((c) => c.name() === argv[2]);
  // Nothing was asked for: say what there is.
  if (argv.length <= 2) return root.outputHelp();
  if (argv.length === 3 && known && known.commands.length > 0) return known.outputHelp();
  try {
    await root.parseAsync([...argv]);
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return; // help and version were printed
    if (!(error instanceof CommanderError || error instanceof UsageError)) throw error;
    const inner = known?.commands.find((c) => c.name() === argv[3]);
    const [what, suggestion] = error.message.replace(/^error: /, '').split('\n');
    const similar = /Did you mean (.+)\?\)$/.exec(suggestion ?? '')?.[1];
    const message = similar ? `${what}; did you mean ${similar}?` : what;
    const words = ['ansatz', known?.name(), inner?.name(), '--help'].filter((w) => w !== undefined);
    const hint = (error instanceof UsageError && error.hint) || words.join(' ');
    process.exitCode = output.fail(inThisShell(new UsageError(message, { hint })));
  }
}
