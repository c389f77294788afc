// How much text fits an example: the published tables of span corruption, and that nothing longer fits.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  counts,
  exampleLengths,
  mixtures,
  rawForInputs,
  rawForStream,
  streamLength,
} from '../../src/tricks/ul2/index.ts';

const SPANS = mixtures.ul2.filter((d) => d.kind === 'spans');

describe('lengths', () => {
  // mean, density, then [text, targets, spans] for 512, 1024 and 2048 encoder tokens.
  const whole: [number, number, number[][]][] = [
    [
      3,
      0.15,
      [
        [568, 114, 28],
        [1137, 229, 57],
        [2274, 456, 114],
      ],
    ],
    [
      8,
      0.15,
      [
        [588, 100, 11],
        [1178, 200, 22],
        [2357, 399, 44],
      ],
    ],
    [
      3,
      0.5,
      [
        [766, 512, 128],
        [1534, 1024, 256],
        [3070, 2048, 512],
      ],
    ],
    [
      8,
      0.5,
      [
        [908, 512, 57],
        [1818, 1024, 114],
        [3638, 2047, 227],
      ],
    ],
    [
      64,
      0.15,
      [
        [600, 92, 1],
        [1200, 184, 3],
        [2401, 367, 6],
      ],
    ],
    [
      64,
      0.5,
      [
        [1006, 512, 8],
        [2014, 1024, 16],
        [4030, 2047, 31],
      ],
    ],
    [
      12,
      0.5,
      [
        [944, 512, 39],
        [1888, 1024, 79],
        [3778, 2047, 157],
      ],
    ],
    [
      32,
      0.15,
      [
        [598, 94, 3],
        [1197, 187, 6],
        [2395, 371, 11],
      ],
    ],
    [
      32,
      0.5,
      [
        [990, 511, 15],
        [1984, 1024, 31],
        [3970, 2048, 62],
      ],
    ],
  ];
  // The same with one slot reserved for a mode token.
  const reserved: [number, number, number[][]][] = [
    [
      3,
      0.15,
      [
        [567, 114, 28],
        [1135, 228, 57],
      ],
    ],
    [
      8,
      0.15,
      [
        [587, 100, 11],
        [1177, 200, 22],
      ],
    ],
    [
      3,
      0.5,
      [
        [765, 510, 127],
        [1533, 1022, 255],
      ],
    ],
    [
      8,
      0.5,
      [
        [906, 511, 57],
        [1816, 1023, 114],
      ],
    ],
    [
      64,
      0.15,
      [
        [599, 92, 1],
        [1199, 184, 3],
      ],
    ],
    [
      64,
      0.5,
      [
        [1004, 511, 8],
        [2012, 1023, 16],
      ],
    ],
    [
      12,
      0.5,
      [
        [942, 511, 39],
        [1886, 1023, 79],
      ],
    ],
    [
      32,
      0.15,
      [
        [597, 94, 3],
        [1195, 186, 6],
      ],
    ],
    [
      32,
      0.5,
      [
        [990, 511, 15],
        [1982, 1023, 31],
      ],
    ],
  ];
  for (const [name, table, slots] of [
    ['without a mode token', whole, 0],
    ['with one', reserved, 1],
  ] as const)
    test(`table ${name}`, () => {
      for (const [mean, density, rows] of table)
        rows.forEach((row, k) => {
          const budget = 512 * 2 ** k - slots;
          const raw = rawForInputs(budget, density, mean);
          const { inputs, targets } = exampleLengths(raw, density, mean);
          assert.deepEqual([raw, targets, counts(raw, density, mean).spans], row, `mean ${mean}, density ${density}`);
          assert.ok(inputs === budget || (inputs === budget - 1 && density === 0.5));
        });
    });

  test('no longer text fits a stream', () => {
    for (const { density, mean } of SPANS)
      for (const budget of [16, 61, 256, 1024]) {
        const raw = rawForStream(budget, density, mean, 1);
        assert.ok(streamLength(raw, density, mean, 1) <= budget);
        assert.ok(streamLength(raw + 1, density, mean, 1) > budget);
        assert.ok(streamLength(raw, density, mean, 1) >= budget - 2);
      }
  });
});
