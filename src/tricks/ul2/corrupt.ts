/** Texts with holes: every run of noise becomes one sentinel, and the targets say what stood there. */
import { AnsatzError } from '../../backend/errors.ts';

export interface Corrupted {
  readonly inputs: Int32Array;
  readonly targets: Int32Array;
}

/**
 * Run i of the mask becomes sentinel i in the inputs; the targets are each sentinel followed by the run's tokens. With
 * S runs over N of L tokens: L - N + S inputs and N + S targets.
 */
export function corrupt(tokens: ArrayLike<number>, mask: Uint8Array, sentinels: ArrayLike<number>): Corrupted {
  const inputs = new Int32Array(2 * mask.length);
  const targets = new Int32Array(2 * mask.length);
  let [nIn, nOut, run] = [0, 0, 0];
  for (let k = 0; k < mask.length; k++) {
    if (!mask[k]) {
      inputs[nIn++] = tokens[k];
      continue;
    }
    if (k === 0 || !mask[k - 1]) {
      if (run >= sentinels.length)
        throw new AnsatzError(
          `span corruption: more than ${sentinels.length} spans, and no sentinel left for the next`,
        );
      inputs[nIn++] = targets[nOut++] = sentinels[run++];
    }
    targets[nOut++] = tokens[k];
  }
  return { inputs: inputs.slice(0, nIn), targets: targets.slice(0, nOut) };
}

/**
 * The text that `corrupt` took apart. Sentinels that the targets do not fill stay out.
 * @throws AnsatzError when the targets fill a sentinel twice or begin without one.
 */
export function reconstruct({ inputs, targets }: Corrupted, sentinels: ArrayLike<number>): Int32Array {
  const index = new Map(Array.from(sentinels, (id, k): [number, number] => [id, k]));
  const spans = new Map<number, number[]>();
  let span: number[] | undefined;
  for (const id of targets) {
    if (index.has(id)) {
      if (spans.has(id)) throw new AnsatzError(`the targets fill sentinel ${index.get(id)} twice`);
      spans.set(id, (span = []));
    } else if (span) span.push(id);
    else throw new AnsatzError('the targets do not begin with a sentinel');
  }
  return Int32Array.from([...inputs].flatMap((id) => (index.has(id) ? (spans.get(id) ?? []) : [id])));
}
