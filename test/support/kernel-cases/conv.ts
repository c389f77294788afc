// Cases of 1-D convolution: dense, grouped, depthwise, causal, strided, dilated.
import { floatDtype, gaussian, makeCase, output, type Rng, tolerance } from './build.ts';
import type { CaseGenerator } from './types.ts';

interface Problem {
  readonly B: number;
  readonly T: number;
  readonly Cin: number;
  readonly Cout: number;
  readonly K: number;
  readonly groups: number;
  readonly stride: number;
  readonly padL: number;
  readonly padR: number;
  readonly dilation: number;
}

const outputLength = (s: Problem) => Math.floor((s.T + s.padL + s.padR - s.dilation * (s.K - 1) - 1) / s.stride) + 1;

function problems(rng: Rng): Problem[] {
  const random = Array.from({ length: 80 }, (): Problem => {
    const groups = rng.pick([1, 1, 2, 3]);
    const [K, dilation] = [rng.int(1, 5), rng.int(1, 3)];
    return {
      B: rng.int(1, 3),
      T: rng.int(1, 20),
      Cin: groups * rng.int(1, 20),
      Cout: groups * rng.int(1, 20),
      K,
      groups,
      stride: rng.int(1, 3),
      padL: rng.int(0, (K - 1) * dilation + 1),
      padR: rng.int(0, 3),
      dilation,
    };
  });
  const depthwise = Array.from({ length: 40 }, (_, k): Problem => {
    const [K, dilation] = [rng.int(1, 6), rng.int(1, 2)];
    const channels = rng.pick([k + 1, 48, 64, 65]);
    const padL = rng.pick([0, (K - 1) * dilation]);
    return {
      ...{ B: rng.int(1, 2), T: rng.int(12, 40), Cin: channels, Cout: channels, groups: channels, K, dilation, padL },
      ...{ padR: rng.int(0, 2), stride: rng.pick([1, 1, 2]) },
    };
  });
  const causal = { padL: 2, padR: 0, K: 3, stride: 1, dilation: 1 };
  const chosen: Problem[] = [
    { ...causal, B: 2, T: 200, Cin: 48, Cout: 64, groups: 1 },
    { ...causal, B: 2, T: 130, Cin: 96, Cout: 96, groups: 96 }, // depthwise
    { ...causal, B: 1, T: 1000, Cin: 1, Cout: 1, groups: 1 },
    { ...causal, B: 1, T: 33, Cin: 17, Cout: 34, groups: 17 },
    { ...causal, B: 0, T: 5, Cin: 3, Cout: 2, groups: 1 },
    { ...causal, B: 1, T: 64, Cin: 80, Cout: 40, groups: 1, K: 1, padL: 0 },
    { ...causal, B: 1, T: 90, Cin: 16, Cout: 16, groups: 2, K: 4, padL: 1, padR: 2, stride: 2, dilation: 4 },
  ];
  return [...random, ...depthwise, ...chosen].filter((s) => outputLength(s) > 0);
}

const conv: CaseGenerator = (kernel, rng) =>
  problems(rng).map((s) => {
    const Tout = outputLength(s);
    const [nx, nw, ny] = [s.B * s.T * s.Cin, s.Cout * (s.Cin / s.groups) * s.K, s.B * Tout * s.Cout];
    const given = (n: number) => gaussian(rng, floatDtype(rng), n);
    const result = (n: number) => output(floatDtype(rng), n);
    const biased = rng.chance(0.5);
    const p = {
      conv1d: () => [result(ny), given(nx), given(nw), biased ? given(s.Cout) : null],
      conv1d_bwd_x: () => [result(nx), given(nw), given(ny)],
      conv1d_bwd_w: () => [result(nw), biased ? result(s.Cout) : null, given(nx), given(ny)],
    }[kernel]!();
    const terms = kernel === 'conv1d_bwd_w' ? s.B * Tout : ((kernel === 'conv1d' ? s.Cin : s.Cout) / s.groups) * s.K;
    return makeCase(kernel, {
      p,
      i: [s.B, s.T, s.Cin, s.Cout, s.K, s.groups, s.stride, s.padL, s.dilation, Tout],
      tolerance: tolerance(2e-6, 2e-6 * Math.sqrt(terms + 1), 3e-6),
    });
  });

export const convCases: Record<string, CaseGenerator> = { conv1d: conv, conv1d_bwd_x: conv, conv1d_bwd_w: conv };
