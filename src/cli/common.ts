/** What commands share: output options, recipes, number arguments. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { type Command, Option } from 'commander';
import { AnsatzError } from '../backend/errors.ts';
import type { TrainConfigInput } from '../train/config.ts';
import { spoken } from './invocation.ts';
import { Output, runCommand, UsageError } from './term/output.ts';

export interface OutputFlags {
  json?: boolean;
  plain?: boolean;
}

/** Adds --json and --plain, and runs the action under the output contract. */
export function action<A extends unknown[]>(
  command: Command,
  run: (output: Output, ...args: A) => Promise<void>,
): Command {
  return command
    .option('--json', 'one JSON object a line on stdout, nothing else')
    .option('--plain', 'plain lines even on a terminal')
    .action(async (...all: unknown[]) => {
      const flags = all[all.length - 2] as OutputFlags;
      const output = new Output({ json: flags.json, plain: flags.plain });
      await runCommand(output, async () => {
        try {
          await run(output, ...(all as A));
        } catch (error) {
          const group = command.parent?.parent ? `${command.parent.name()} ` : '';
          throw inThisShell(error, `ansatz ${group}${command.name()} --help`);
        }
      });
    });
}

/** The same error with a next command as it must be typed here; `help` is the one for an error that names none. */
export function inThisShell(error: unknown, help = 'ansatz --help'): unknown {
  if (!(error instanceof AnsatzError)) return error;
  const hint = spoken(error.hint ?? help);
  return error instanceof UsageError
    ? new UsageError(error.message, { hint })
    : new AnsatzError(error.message, { hint, cause: error });
}

/** A parser for a numeric option. */
export function number(what: string, test: (n: number) => boolean = (n) => n > 0): (text: string) => number {
  return (text) => {
    const n = Number(text);
    if (text.trim() === '' || !Number.isFinite(n) || !test(n)) throw new UsageError(`${what} cannot be '${text}'`);
    return n;
  };
}

/** An option that may be given several times; its value is the list of all of them. */
export const repeated = (flags: string, description: string): Option =>
  new Option(flags, description).argParser((value: string, all: string[] = []) => [...all, value]);

/** What a recipe may be told. */
export interface RecipeOptions {
  /** Folder of a prepared data set. */
  data: string;
  /** Tokens in its vocabulary. */
  vocab: number;
  /** Optimiser steps, when the user asks for a number of them. */
  steps?: number;
  seed?: number;
}

/** A recipe's config with what the command line changes in it. */
export async function configured(
  recipe: Recipe,
  options: RecipeOptions,
  settings: readonly string[] = [],
): Promise<TrainConfigInput> {
  const { trainConfigSchema } = await import('../train/config.ts');
  const input = recipe.config(options);
  // With every default filled in, an option of a part that the recipe leaves out finds that part.
  const full = trainConfigSchema.safeParse(input);
  const config = full.success ? full.data : input;
  applySettings(config, settings);
  return config;
}

export interface Recipe {
  /** Vocabulary to train a tokenizer with, when the data is text. */
  readonly vocab: number;
  readonly summary: string;
  config(options: RecipeOptions): TrainConfigInput;
}

const recipesFolder = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..', 'recipes');

/** Names of the recipes that come with the project. */
export const recipeNames = (): string[] =>
  readdirSync(recipesFolder)
    .filter((f) => f.endsWith('.ts'))
    .map((f) => f.slice(0, -3))
    .sort();

/**
 * A recipe by name, or by the path of a .ts, .mjs or .json file. A .json file holds the fields of a run config.
 * @throws AnsatzError when there is none, or it is broken.
 */
export async function loadRecipe(nameOrPath: string): Promise<Recipe> {
  const named = join(recipesFolder, `${nameOrPath}.ts`);
  const path = /^[\w-]+$/.test(nameOrPath) && existsSync(named) ? named : resolve(nameOrPath);
  if (!existsSync(path) || !/\.(ts|mts|mjs|js|json)$/.test(path))
    throw new AnsatzError(`no recipe '${nameOrPath}'`, {
      hint: `choose from ${recipeNames().join(', ')}, or give the path of a .ts or .json file`,
    });
  try {
    return checked(path, path.endsWith('.json') ? jsonRecipe(path) : await importRecipe(path));
  } catch (cause) {
    throw new AnsatzError(`recipe ${path} does not load: ${firstLine(cause)}`, {
      hint: 'docs/train.md says what a recipe is; recipes/tiny.ts is one',
      cause,
    });
  }
}

async function importRecipe(path: string): Promise<Recipe> {
  const recipe = await defaultExport(path);
  if (typeof recipe?.config !== 'function') throw new Error('it has no default export with a config() function');
  if (!Number.isInteger(recipe.vocab)) throw new Error('its default export has no vocab, a whole number');
  return recipe;
}

async function defaultExport(path: string): Promise<Recipe | undefined> {
  const url = pathToFileURL(path).href;
  if (dirname(path) === recipesFolder || !/\.m?ts$/.test(path))
    return ((await import(url)) as { default?: Recipe }).default;
  // A .ts file of the user's lies in a package of its own or in none, where Node may take it for CommonJS.
  const { tsImport } = await import('tsx/esm/api');
  const module = (await tsImport(url, import.meta.url)) as { default?: Recipe & { default?: Recipe } };
  return module.default?.default ?? module.default;
}

/** A .json file holds the fields of a run config; what the command line says about data, steps and seed goes first. */
function jsonRecipe(path: string): Recipe {
  const fixed = JSON.parse(readFileSync(path, 'utf8')) as TrainConfigInput & { model: { vocab?: number } };
  for (const part of [fixed, fixed?.model])
    if (typeof part !== 'object' || part === null || Array.isArray(part))
      throw new Error('it is not an object with a model in it');
  return {
    vocab: fixed.model.vocab ?? 4096,
    summary: path,
    config: (o) => ({
      ...fixed,
      model: { ...fixed.model, vocab: fixed.model.vocab ?? o.vocab },
      data: { ...fixed.data, folder: o.data },
      steps: o.steps ?? fixed.steps,
      seed: o.seed ?? fixed.seed,
    }),
  };
}

/** A recipe whose config() fails names the recipe. */
function checked(path: string, recipe: Recipe): Recipe {
  const config = (options: RecipeOptions): TrainConfigInput => {
    try {
      return recipe.config(options);
    } catch (cause) {
      if (cause instanceof AnsatzError) throw cause;
      throw new AnsatzError(`recipe ${path} fails in config(): ${firstLine(cause)}`, {
        hint: `correct ${path}`,
        cause,
      });
    }
  };
  return { vocab: recipe.vocab, summary: recipe.summary ?? path, config };
}

const firstLine = (error: unknown): string => (error instanceof Error ? error.message : String(error)).split('\n')[0];

/**
 * Sets dotted fields of a config from "path=value" words; values are JSON, or text when they are not. Another kind for
 * a part starts from that kind's defaults.
 */
export function applySettings(config: object, settings: readonly string[] = []): void {
  for (const setting of settings) {
    const at = setting.indexOf('=');
    const parts = setting.slice(0, Math.max(0, at)).split('.');
    if (parts.some((part) => !/^\w+$/.test(part) || part === '__proto__'))
      throw new UsageError(`--set wants field=value, not '${setting}'`, { hint: '--set optimiser.lr=0.001' });
    const last = parts.pop()!;
    const value = parsedValue(setting.slice(at + 1));
    let target = config as Record<string, unknown>;
    for (const part of parts) {
      // A slot may be given as its kind alone; an option of it makes it an object.
      if (typeof target[part] === 'string') target[part] = { kind: target[part] };
      const next = Object.hasOwn(target, part) && target[part] !== undefined ? target[part] : (target[part] = {});
      if (typeof next !== 'object' || next === null)
        throw new UsageError(`--set ${setting}: ${part} has no fields`, { hint: 'docs/train.md lists them' });
      target = next as Record<string, unknown>;
    }
    if (last === 'kind' && target.kind !== value) for (const field of Object.keys(target)) delete target[field];
    target[last] = value;
  }
}

function parsedValue(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
