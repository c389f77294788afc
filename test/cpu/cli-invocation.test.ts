// Printed commands can be copied and run: what starts the program from here, and words that survive a shell.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { invocation, quoted, shortPath, spoken } from '../../src/cli/invocation.ts';
import { bin } from '../support/cli.ts';
import { checkout, temporaryFolder } from '../support/tiny-data.ts';

const root = temporaryFolder('invocation');

describe('commands as they are printed', () => {
  test('npx in the checkout, node elsewhere, the bare name where it is installed', () => {
    assert.equal(invocation(checkout, bin), 'npx ansatz');
    assert.equal(invocation(join(checkout, 'src'), bin), 'npx ansatz');
    assert.equal(invocation(root, bin), `node ${quoted(bin)}`);
    assert.equal(invocation(root, '/usr/local/bin/ansatz'), 'ansatz');
    assert.equal(invocation('/elsewhere', '/elsewhere/node_modules/.bin/ansatz'), 'npx ansatz');
  });
  test('only commands are rewritten', () => {
    assert.equal(
      spoken('`ansatz train x` of ansatz, or\n  ansatz --help', 'A'),
      '`A train x` of ansatz, or\n  A --help',
    );
    assert.equal(spoken('npx ansatz train', 'A').includes('npx'), true);
  });
  test('words for a shell, and short paths', () => {
    assert.deepEqual(['a/b-1.ts', 'a b', "it's", ''].map(quoted), ['a/b-1.ts', "'a b'", "'it'\\''s'", "''"]);
    assert.deepEqual([shortPath('/a/b/c', '/a'), shortPath('/x', '/a'), shortPath('/a', '/a')], ['b/c', '/x', '.']);
  });
});
