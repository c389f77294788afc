import { createHash } from 'node:crypto';
import { AnsatzError } from '../backend/errors.ts';
import { documentHash } from './corpus-collect.ts';
import { clusterByLines, lineOverlap } from './split-clusters.ts';
import type { Document } from './types.ts';

export interface SplitOptions {
  /** Part of the bytes to hold out. */
  fraction?: number;
  /** Never hold out more than this: evaluation has to stay quick. */
  maxBytes?: number;
  /** Smaller corpora are refused: neither side would mean anything. */
  minCorpusBytes?: number;
  /** Another seed holds out other documents. */
  seed?: number;
}

export interface Split {
  train: Document[];
  heldOut: Document[];
  /** `documents`: whole documents are held out. `tail`: too few for that, so the end of the longest one is. */
  method: 'documents' | 'tail';
  /** Share of the held-out text whose lines also occur in the training text (common idioms, licence headers). */
  overlap: number;
  /** Near-duplicates of held-out documents, used on neither side. */
  dropped: number;
  trainBytes: number;
  heldOutBytes: number;
}

/**
 * Holds out one document of each of a few groups of near-duplicates, lowest hash first, until the wanted size is
 * reached; the others of those groups are dropped. On the training side they would be answers given away, on the
 * held-out side they would flatter compressors, which see the whole text, against a model that sees one document.
 * What is held out depends on contents and seed only, and adding documents moves few others across.
 */
export function splitHeldOut(documents: readonly Document[], options: SplitOptions = {}): Split {
  const { fraction = 0.015, maxBytes = 2e6, minCorpusBytes = 20_000, seed = 0 } = options;
  if (!(fraction > 0 && fraction < 0.5)) {
    throw new AnsatzError(`cannot hold out a fraction of ${fraction}: it must lie between 0 and 0.5`);
  }
  const total = sumBytes(documents);
  if (total < minCorpusBytes) {
    throw new AnsatzError(
      `the corpus is too small to train on: ${total} bytes in ${documents.length} documents, at least ${minCorpusBytes} bytes are needed`,
      { hint: 'give a folder with more text' },
    );
  }
  const target = Math.max(1, Math.min(fraction * total, maxBytes));
  const groupOf = clusterByLines(documents);
  const chosen = chooseGroups(listGroups(documents, groupOf, seed), target, total);
  if (chosen.length === 0) return describe(splitTail(documents, target), 'tail');
  const representatives = new Set(chosen.map((group) => group.representative));
  const groups = new Set(chosen.map((group) => groupOf[group.representative]));
  const train = documents.filter((_, d) => !groups.has(groupOf[d]));
  const heldOut = documents.filter((_, d) => representatives.has(d));
  return describe({ train, heldOut, dropped: documents.length - train.length - heldOut.length }, 'documents');
}

type Sides = Pick<Split, 'train' | 'heldOut' | 'dropped'>;

interface Group {
  key: string;
  representative: number;
  /** Of the representative. */
  bytes: number;
  groupBytes: number;
}

/** The groups in the order of their lowest seeded hash; the document that has it represents its group. */
function listGroups(documents: readonly Document[], groupOf: Int32Array, seed: number): Group[] {
  const groups = new Map<number, Group>();
  groupOf.forEach((id, d) => {
    const bytes = documents[d].text.length;
    const key = createHash('sha256')
      .update(`${seed}:${documentHash(documents[d])}`)
      .digest('hex');
    const group = groups.get(id);
    if (!group) groups.set(id, { key, representative: d, bytes, groupBytes: bytes });
    else {
      group.groupBytes += bytes;
      if (key < group.key) Object.assign(group, { key, representative: d, bytes });
    }
  });
  return [...groups.values()].sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : 0));
}

function chooseGroups(groups: readonly Group[], target: number, total: number): Group[] {
  const chosen: Group[] = [];
  let bytes = 0;
  let used = 0;
  // First without long documents: the held-out set of a corpus that has many must not be one of them.
  for (const limit of [target / 4, target * 1.25]) {
    for (const group of groups) {
      if (bytes >= target * 0.9) return chosen;
      if (group.bytes > limit || bytes + group.bytes > target * 1.25) continue;
      // What is dropped is lost to training: keep that to a few times what is held out.
      if (used + group.groupBytes > 4 * target || chosen.includes(group)) continue;
      chosen.push(group);
      bytes += group.bytes;
      used += group.groupBytes;
    }
  }
  if (chosen.length > 0) return chosen;
  // A corpus of few, long documents: one whole document may take up to a fifth, more is for the tail rule.
  const smallest = groups.reduce((best, group) => (group.groupBytes < best.groupBytes ? group : best));
  return smallest.groupBytes <= Math.min(total / 5, 4 * target) ? [smallest] : [];
}

/** Cuts the end off the longest document, at a line break if there is one near. */
function splitTail(documents: readonly Document[], target: number): Sides {
  let longest = 0;
  for (let d = 1; d < documents.length; d++) {
    const [a, b] = [documents[d], documents[longest]];
    const longer = a.text.length - b.text.length;
    if (longer > 0 || (longer === 0 && documentHash(a) < documentHash(b))) longest = d;
  }
  const { text, source, license } = documents[longest];
  const at = cutPoint(text, text.length - Math.floor(Math.min(target, text.length / 5)));
  const train = [...documents];
  train[longest] = { text: text.subarray(0, at), source, license };
  return { train, heldOut: [{ text: text.subarray(at), source: `${source}#tail`, license }], dropped: 0 };
}

function cutPoint(text: Uint8Array, wanted: number): number {
  const newline = text.indexOf(10, wanted);
  if (newline !== -1 && newline + 1 < text.length && newline - wanted < (text.length - wanted) / 2) return newline + 1;
  // Otherwise at a character: continuation bytes of UTF-8 are 10xxxxxx.
  let at = Math.min(Math.max(wanted, 1), text.length - 1);
  for (let back = 0; back < 3 && at > 1 && (text[at] & 0xc0) === 0x80; back++) at--;
  return at;
}

function describe(sides: Sides, method: Split['method']): Split {
  return {
    ...sides,
    method,
    overlap: lineOverlap(sides.train, sides.heldOut),
    trainBytes: sumBytes(sides.train),
    heldOutBytes: sumBytes(sides.heldOut),
  };
}

function sumBytes(documents: readonly Document[]): number {
  return documents.reduce((sum, document) => sum + document.text.length, 0);
}
