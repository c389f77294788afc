// Builds the native addon: build/ansatz.node. Plain Node, no node-gyp: one compiler call a file and level, in
// parallel, each object cached by the hash of its command and everything it includes.
//
//   node scripts/build-native.mjs [--levels portable,avx2,avx512] [--quiet] [--json]
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

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
  '-Wno-maybe-uninitialized', // GCC 12 reports its own AVX-512 headers
  '-Wno-unknown-warning-option',
  '-Wno-unused-function',
  '-pthread',
];
const kernelFlags = ['-ffp-contract=fast', '-fno-math-errno', '-fno-trapping-math'];
const include = ['node-addon-api', 'node-api-headers/include'].map((d) => `-I${join(root, 'node_modules', d)}`);

function fail(message, hint) {
  process.stderr.write(`error: ${message}\n  next: ${hint}\n`);
  process.exit(1);
}

const sources = (folder) =>
  readdirSync(join(native, folder))
    .filter((f) => f.endsWith('.cpp'))
    .sort()
    .map((f) => join(native, folder, f));

/** The text of a file and of every local header it includes, for the cache key. */
function closure(file, seen = new Set()) {
  if (seen.has(file) || !existsSync(file)) return '';
  seen.add(file);
  const text = readFileSync(file, 'utf8');
  const headers = [...text.matchAll(/^\s*#include "([^"]+)"/gm)].map((m) => resolve(dirname(file), m[1]));
  return text + headers.map((h) => closure(h, seen)).join('\n');
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

function run(command, args) {
  return new Promise((done) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    child.stdout.on('data', (d) => (output += d));
    child.stderr.on('data', (d) => (output += d));
    child.on('error', (e) => done({ code: -1, output: String(e) }));
    child.on('close', (code) => done({ code, output }));
  });
}

async function findCompiler() {
  const wanted = process.env.CXX ? [process.env.CXX] : ['g++', 'clang++', 'c++'];
  for (const compiler of wanted) {
    const { code, output } = await run(compiler, ['--version']);
    if (code === 0) return { compiler, version: output.split('\n')[0] };
  }
  fail(
    `no C++ compiler found (tried ${wanted.join(', ')}): the kernels are compiled on this machine`,
    'install g++ 11 or later or clang 14 or later (Debian: apt-get install g++), then npm run build',
  );
}

export async function buildNative({ levels = Object.keys(levelFlags), quiet = false, json = false } = {}) {
  const started = Date.now();
  if (!existsSync(join(root, 'node_modules', 'node-addon-api'))) fail('dependencies are not installed', 'npm ci');
  for (const l of levels)
    if (!(l in levelFlags)) fail(`unknown level '${l}'`, `choose from ${Object.keys(levelFlags).join(', ')}`);
  const { compiler, version } = await findCompiler();
  mkdirSync(join(build, 'obj'), { recursive: true });

  const kernels = sources('cpu');
  const registry = join(build, 'registry.gen.cpp');
  writeFileSync(registry, registrySource(kernels, levels));

  const jobs = [];
  for (const file of [...sources('core'), ...sources('text'), registry])
    jobs.push({
      file,
      label: relative(root, file),
      args: [...common, ...include, '-DNAPI_DISABLE_CPP_EXCEPTIONS', '-DNAPI_VERSION=8'],
    });
  for (const file of kernels)
    for (const level of levels)
      jobs.push({
        file,
        label: `${relative(root, file)} [${level}]`,
        args: [...common, ...kernelFlags, ...levelFlags[level], `-DANSATZ_LEVEL=${level}`],
      });
  for (const job of jobs) {
    const key = createHash('sha256')
      .update([version, ...job.args, job.label, closure(job.file)].join('\0'))
      .digest('hex');
    job.object = join(build, 'obj', `${key.slice(0, 24)}.o`);
  }

  // The slowest files first, so that no long compile is left alone at the end.
  const todo = jobs.filter((j) => !existsSync(j.object)).sort((a, b) => statSync(b.file).size - statSync(a.file).size);
  let done = 0;
  const tty = process.stdout.isTTY && !quiet && !json;
  const worker = async () => {
    for (let job; (job = todo.shift()); ) {
      const temporary = `${job.object}.${process.pid}.tmp`;
      const { code, output } = await run(compiler, [...job.args, '-c', job.file, '-o', temporary]);
      if (code !== 0) {
        process.stderr.write(output);
        fail(`compiling ${job.label} with ${version} failed`, 'fix the error above, then npm run build');
      }
      renameSync(temporary, job.object);
      done++;
      if (tty) process.stdout.write(`\r\x1b[Kbuilding native code  ${done}/${total}  ${job.label}`);
    }
  };
  const total = todo.length;
  await Promise.all(Array.from({ length: Math.max(1, availableParallelism()) }, worker));
  if (tty && total) process.stdout.write('\r\x1b[K');

  const output = join(build, 'ansatz.node');
  const stamp = createHash('sha256')
    .update(jobs.map((j) => j.object).join('\n'))
    .digest('hex');
  const stampFile = join(build, 'ansatz.stamp');
  if (!existsSync(output) || !existsSync(stampFile) || readFileSync(stampFile, 'utf8') !== stamp) {
    const shared =
      process.platform === 'darwin' ? ['-bundle', '-undefined', 'dynamic_lookup'] : ['-shared', '-Wl,--gc-sections'];
    const temporary = `${output}.${process.pid}.tmp`;
    const { code, output: text } = await run(compiler, [
      ...shared,
      '-pthread',
      ...jobs.map((j) => j.object),
      '-o',
      temporary,
    ]);
    if (code !== 0) {
      process.stderr.write(text);
      fail(`linking ${relative(root, output)} failed`, 'fix the error above, then npm run build');
    }
    renameSync(temporary, output);
    writeFileSync(stampFile, stamp);
    // Objects of older sources are not needed any more.
    const keep = new Set(jobs.map((j) => j.object));
    for (const f of readdirSync(join(build, 'obj'))) {
      const path = join(build, 'obj', f);
      if (f.endsWith('.o') && !keep.has(path)) rmSync(path, { force: true });
    }
  }
  const seconds = (Date.now() - started) / 1000;
  if (json)
    process.stdout.write(
      `${JSON.stringify({ event: 'built', output, compiled: total, levels, compiler: version, seconds })}\n`,
    );
  else if (!quiet)
    process.stdout.write(
      `native addon ready: ${relative(root, output)} (${total} compiled, ${seconds.toFixed(1)} s)\n`,
    );
}

if (process.argv[1] && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const argv = process.argv.slice(2);
  if (argv.includes('--help')) {
    process.stdout.write(
      'usage: npm run build -- [--levels portable,avx2,avx512] [--quiet] [--json]\n\nBuilds build/ansatz.node with g++ or clang++ (CXX overrides). Unchanged files are not compiled again.\n',
    );
    process.exit(0);
  }
  const at = argv.indexOf('--levels');
  await buildNative({
    levels: at >= 0 ? (argv[at + 1] ?? '').split(',') : undefined,
    quiet: argv.includes('--quiet'),
    json: argv.includes('--json'),
  });
}
