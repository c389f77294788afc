// Builds the native addon: build/ansatz.node. Plain Node, no node-gyp: one compiler call a file and level, in
// parallel, each object cached by the hash of its command and everything it includes. Every file appears whole or not
// at all (written beside, then renamed), so a build that is killed costs nothing but its time.
//
//   node scripts/build-native.mjs [--levels portable,avx2,avx512] [--quiet] [--json] [--warnings]
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { takeLock } from './build-lock.mjs';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const native = join(root, 'native');
const build = join(root, 'build');

const avx2 = ['-mavx2', '-mfma', '-mf16c', '-mbmi', '-mbmi2'];
const avx512 = [
  ...avx2,
  '-mavx512f',
  '-mavx512bw',
  '-mavx512vl',
  '-mavx512dq',
  '-mavx512bf16',
  '-mavx512vnni',
  '-mavx512vbmi',
  '-mprefer-vector-width=512',
];
const levelFlags = process.arch === 'x64' ? { portable: [], avx2, avx512 } : { portable: [] };
const common = [
  '-std=c++17',
  '-O2',
  '-fPIC',
  '-fvisibility=hidden',
  '-Wall',
  '-Wno-psabi',
  '-Wno-unused-function',
  '-pthread',
];
const gccFlags = ['-Wno-maybe-uninitialized']; // GCC 12 reports its own AVX-512 headers; clang does not know the name
const kernelFlags = ['-ffp-contract=fast', '-fno-math-errno', '-fno-trapping-math'];
const packages = ['node-addon-api', 'node-api-headers'].map((p) => join(root, 'node_modules', p));
const bindingFlags = [
  `-I${packages[0]}`,
  `-I${join(packages[1], 'include')}`,
  '-DNAPI_DISABLE_CPP_EXCEPTIONS',
  '-DNAPI_VERSION=8',
  '-DNODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS', // a worker that is being terminated cannot be thrown at
];

function fail(message, hint) {
  process.stderr.write(`error: ${message}\n  next: ${hint}\n`);
  process.exit(1);
}

const sources = (folder) =>
  readdirSync(join(native, folder))
    .filter((f) => f.endsWith('.cpp'))
    .sort()
    .map((f) => join(native, folder, f));

/** The text of a file (or what it is going to be) and of every local header it includes, for the cache key. */
function closure(file, given, seen = new Set()) {
  if (seen.has(file) || !(given || existsSync(file))) return '';
  seen.add(file);
  const text = given ?? readFileSync(file, 'utf8');
  const headers = [...text.matchAll(/^\s*#include "([^"]+)"/gm)].map((m) => resolve(dirname(file), m[1]));
  return text + headers.map((h) => closure(h, undefined, seen)).join('\n');
}

/** Families (the name in ANSATZ_KERNELS) of a kernel file. */
const families = (file) => [...readFileSync(file, 'utf8').matchAll(/^ANSATZ_KERNELS\((\w+)/gm)].map((m) => m[1]);

function registrySource(kernels, levels) {
  const entries = kernels.flatMap((file) => families(file).flatMap((f) => levels.map((l) => [f, l])));
  return [
    '#include "../native/core/registry.h"',
    'namespace ansatz {',
    ...entries.map(([f, l]) => `extern const KernelTable table_${f}_${l};`),
    'const LeveledTable all_tables[] = {',
    ...entries.map(([f, l]) => `  {"${l}", &table_${f}_${l}},`),
    '};',
    `const int all_tables_count = ${entries.length};`,
    '}  // namespace ansatz',
    '',
  ].join('\n');
}

const children = new Set();

function run(command, args) {
  return new Promise((done) => {
    const child = spawn(command[0], [...command.slice(1), ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    children.add(child);
    let output = '';
    child.stdout.on('data', (d) => (output += d));
    child.stderr.on('data', (d) => (output += d));
    child.on('error', (e) => done({ code: -1, output: String(e) }));
    child.on('close', (code) => {
      children.delete(child);
      done({ code, output });
    });
  });
}

function failCompiler(output, message) {
  for (const child of children) child.kill();
  process.stderr.write(output);
  fail(message, 'fix the error above, then npm run build');
}

/** CXX may be a path (with spaces in it), or a command with arguments such as `ccache g++`. */
const commandOf = (text) => (existsSync(text) ? [text] : text.trim().split(/\s+/));

async function findCompiler() {
  const given = process.env.CXX?.trim();
  const wanted = given ? [given] : ['g++', 'clang++', 'c++'];
  for (const name of wanted) {
    const compiler = commandOf(name);
    const { code, output } = await run(compiler, ['--version']);
    if (code === 0) return { compiler, version: output.split('\n')[0] };
  }
  if (given) fail(`the compiler that CXX names does not run: ${given}`, 'correct CXX or unset it, then npm run build');
  fail(
    `no C++ compiler found (tried ${wanted.join(', ')}): the kernels are compiled on this machine`,
    'install g++ 11 or later or clang 14 or later (Debian: apt-get install g++), then npm run build',
  );
}

/** Replaces a file, unless it holds this already. */
function writeWhole(file, text) {
  if (existsSync(file) && readFileSync(file, 'utf8') === text) return;
  const temporary = `${file}.${process.pid}.tmp`;
  writeFileSync(temporary, text);
  renameSync(temporary, file);
}

/** Every compiler call and the object it makes. `text` is given for the file that the build writes itself. */
function plan(levels, identity) {
  const everywhere = identity.includes('clang') ? common : [...common, ...gccFlags];
  const versions = packages.map((p) => readFileSync(join(p, 'package.json'), 'utf8')).join('\n');
  const jobs = [];
  const add = (file, args, more = {}) => {
    const label = relative(root, file) + (more.level ? ` [${more.level}]` : '');
    const objectNow = () => {
      const parts = [identity, ...args, label, closure(file, more.text), more.versions ?? ''];
      return join(build, 'obj', `${createHash('sha256').update(parts.join('\0')).digest('hex').slice(0, 24)}.o`);
    };
    jobs.push({ file, label, args, level: more.level, text: more.text, objectNow, object: objectNow() });
  };
  const kernels = sources('cpu');
  for (const file of [...sources('core'), ...sources('text')])
    add(file, [...everywhere, ...bindingFlags], { versions });
  add(join(build, 'registry.gen.cpp'), everywhere, { text: registrySource(kernels, levels) });
  for (const file of kernels)
    for (const level of levels)
      add(file, [...everywhere, ...kernelFlags, ...levelFlags[level], `-DANSATZ_LEVEL=${level}`], { level });
  return jobs;
}

const stampOf = (jobs) =>
  createHash('sha256')
    .update(jobs.map((j) => j.object).join('\n'))
    .digest('hex');

const addon = join(build, 'ansatz.node');
const stampFile = join(build, 'ansatz.stamp');
const isCurrent = (jobs) =>
  existsSync(addon) && existsSync(stampFile) && readFileSync(stampFile, 'utf8') === stampOf(jobs);

/**
 * Half of GCC's time on an AVX kernel goes into reading its intrinsics: they are read once a level, where at least four
 * files share them, and forgotten after the build. The objects are the same bytes with and without. (clang is quick.)
 */
async function precompile(todo, compiler) {
  const headers = {};
  const precompileLevel = async (level) => {
    const jobs = todo.filter((j) => j.level === level);
    if (levelFlags[level].length === 0 || jobs.length < 4 || jobs[0].args.every((a) => !gccFlags.includes(a))) return;
    const header = join(build, 'obj', `${process.pid}.${level}.tmp`);
    writeFileSync(header, '#include <immintrin.h>\n#include <cstdint>\n#include <cstring>\n');
    const { code } = await run(compiler, [...jobs[0].args, '-x', 'c++-header', header, '-o', `${header}.gch`]);
    if (code === 0) headers[level] = ['-include', header];
  };
  await Promise.all(Object.keys(levelFlags).map(precompileLevel));
  return headers;
}

async function compileAll(jobs, { compiler, version, tty, warnings }) {
  // The slowest first, so that no long compile is left alone at the end.
  const todo = jobs.filter((j) => !existsSync(j.object)).sort((a, b) => statSync(b.file).size - statSync(a.file).size);
  const total = todo.length;
  const headers = await precompile(todo, compiler);
  let done = 0;
  const worker = async () => {
    for (let job; (job = todo.shift()); ) {
      const temporary = join(build, 'obj', `${process.pid}.${total - todo.length}.tmp`);
      // Again, when the sources changed meanwhile: the object must be what its name says.
      do {
        job.object = job.objectNow();
        const { code, output } = await run(compiler, [
          ...job.args,
          ...(headers[job.level] ?? []),
          '-c',
          job.file,
          '-o',
          temporary,
        ]);
        if (code !== 0) failCompiler(output, `compiling ${job.label} with ${version} failed`);
        if (warnings) process.stderr.write(output);
      } while (job.objectNow() !== job.object);
      renameSync(temporary, job.object);
      done++;
      if (tty) process.stdout.write(`\r\x1b[Kbuilding native code  ${done}/${total}  ${job.label}`);
    }
  };
  await Promise.all(Array.from({ length: Math.max(1, availableParallelism()) }, worker));
  if (tty && total) process.stdout.write('\r\x1b[K');
  return total;
}

async function link(jobs, compiler) {
  const shared =
    process.platform === 'darwin' ? ['-bundle', '-undefined', 'dynamic_lookup'] : ['-shared', '-Wl,--gc-sections'];
  const temporary = `${addon}.${process.pid}.tmp`;
  const objects = jobs.map((j) => j.object);
  const { code, output } = await run(compiler, [...shared, '-pthread', ...objects, '-o', temporary]);
  if (code !== 0) failCompiler(output, `linking ${relative(root, addon)} failed`);
  renameSync(temporary, addon);
  writeWhole(stampFile, stampOf(jobs));
  // Objects of older sources, and what a killed build left, are not needed any more.
  const keep = new Set(objects);
  for (const folder of [build, join(build, 'obj')])
    for (const name of readdirSync(folder)) {
      const path = join(folder, name);
      if (/\.tmp(\.gch)?$/.test(name) || (name.endsWith('.o') && !keep.has(path))) rmSync(path, { force: true });
    }
}

export async function buildNative({ levels = Object.keys(levelFlags), quiet = false, json = false, warnings } = {}) {
  const started = Date.now();
  if (!packages.every(existsSync)) fail('dependencies are not installed', 'npm ci');
  for (const l of levels)
    if (!(l in levelFlags)) fail(`unknown level '${l}'`, `choose from ${Object.keys(levelFlags).join(', ')}`);
  const { compiler, version } = await findCompiler();

  const identity = [...compiler, version].join(' ');
  let jobs = plan(levels, identity);
  let compiled = 0;
  if (!isCurrent(jobs)) {
    let unlock;
    try {
      mkdirSync(join(build, 'obj'), { recursive: true });
      unlock = await takeLock(join(build, 'lock'), () => {
        if (!quiet && !json) process.stdout.write('waiting for another build of this checkout\n');
      });
    } catch (e) {
      fail(
        `the folder ${build} cannot be written (${e.code})`,
        'make it writable, or build a copy of the checkout and set ANSATZ_NATIVE to its build/ansatz.node',
      );
    }
    jobs = plan(levels, identity); // another build may have changed what there is to do
    if (!isCurrent(jobs)) {
      for (const job of jobs) if (job.text) writeWhole(job.file, job.text);
      const tty = process.stdout.isTTY && !quiet && !json;
      compiled = await compileAll(jobs, { compiler, version, tty, warnings });
      await link(jobs, compiler);
    }
    unlock();
  }
  const seconds = (Date.now() - started) / 1000;
  if (json)
    process.stdout.write(
      `${JSON.stringify({ event: 'built', output: addon, compiled, levels, compiler: version, seconds })}\n`,
    );
  else if (!quiet)
    process.stdout.write(
      `native addon ready: ${relative(root, addon)} (${compiled} compiled, ${seconds.toFixed(1)} s)\n`,
    );
}

if (process.argv[1] && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const argv = process.argv.slice(2);
  if (argv.includes('--help')) {
    process.stdout.write(
      'usage: npm run build -- [--levels portable,avx2,avx512] [--quiet] [--json] [--warnings]\n\nBuilds build/ansatz.node with g++ or clang++ (CXX overrides). Unchanged files are not compiled again.\n',
    );
    process.exit(0);
  }
  const at = argv.indexOf('--levels');
  await buildNative({
    levels: at >= 0 ? (argv[at + 1] ?? '').split(',') : undefined,
    quiet: argv.includes('--quiet'),
    json: argv.includes('--json'),
    warnings: argv.includes('--warnings'),
  });
}
