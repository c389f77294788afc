/** Numbers for people. */
const units = ['B', 'KB', 'MB', 'GB', 'TB'];

export function bytes(n: number): string {
  let k = 0;
  while (n >= 1000 && k < units.length - 1) {
    n /= 1000;
    k++;
  }
  return `${k === 0 ? n : n.toPrecision(3)} ${units[k]}`;
}

/** 1234 as "1.23K", 7_240_000 as "7.24M". */
export function count(n: number): string {
  for (const [size, letter] of [
    [1e12, 'T'],
    [1e9, 'B'],
    [1e6, 'M'],
    [1e3, 'K'],
  ] as const)
    if (n >= size) return `${(n / size).toPrecision(3)}${letter}`;
  return String(n);
}

export const rate = (n: number): string => (n >= 100 ? String(Math.round(n)) : n.toPrecision(2));

export const milliseconds = (ms: number): string =>
  ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;

export const share = (x: number): string =>
  x >= 0.0995 || x === 0 ? `${Math.round(100 * x)}%` : `${(100 * x).toPrecision(2)}%`;

export const plural = (n: number, one: string): string => `${n} ${one}${n === 1 ? '' : 's'}`;
