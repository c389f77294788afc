/** Reading prompts of 512 tokens (decode-dense.ts). */
export { runPrefill as run } from './decode-dense.ts';
