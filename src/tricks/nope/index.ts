/** No positions: the slot's kind `none` is part of the base; this folder says what is claimed for it. */
import { registerTrick } from '../registry.ts';

registerTrick({
  name: 'nope',
  summary: 'no position signal at all: a causal mask alone breaks the symmetry',
  hypothesis:
    'On copying and reasoning tasks a decoder without positions is right at longer lengths than one with them.',
  confidence: 'rival',
  tier: 'foundational',
  source: 'Kazemnejad et al. 2023 (arXiv 2305.19466)',
  patch: () => ({ model: { positions: { kind: 'none' } } }),
});
