// What PyTorch computed: test/fixtures/pytorch, made by bench/peers/make_goldens.py.
import { readFileSync } from 'node:fs';

/** The cases of a fixture. */
export const goldens = <C>(name: string): C[] =>
  JSON.parse(readFileSync(new URL(`../fixtures/pytorch/${name}.json`, import.meta.url), 'utf8')).cases;

/** Tensors are stored as text, seven digits a number. */
export const numbers = (text: string): number[] => (text === '' ? [] : text.split(' ').map(Number));
