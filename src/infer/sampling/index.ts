/** Choosing the next token. */
export * from './distribution.ts';
export { randomStream } from './random.ts';
export { logSumExp, Sampler, type SamplerOptions, type TokenMask } from './sampler.ts';
