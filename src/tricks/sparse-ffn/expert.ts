/** The layer as an expert of a mixture: each expert has units and a controller of its own. */
import { AnsatzError } from '../../backend/errors.ts';
import { evenForRows, tensorOf } from '../../nn/index.ts';
import { dropout, groupedMatmul } from '../../tensor/index.ts';
import { expertLinear, registerExpert } from '../moe/index.ts';
import { maskedUnits } from './gate.ts';
import { usageMonitor } from './monitor.ts';
import { rankOf, sparseFfnSchema, sparseParams } from './options.ts';

registerExpert({
  kind: 'sparse-ffn',
  summary: 'one unit of each block alive, chosen by the expert’s own controller: sparsity within sparsity',
  options: sparseFfnSchema,
  build: (o, { experts, width, depth }) => {
    if (o.bias) throw new AnsatzError('sparse-ffn experts have no biases: leave expert.bias out');
    const rank = rankOf(o, width);
    return {
      params: sparseParams(o, { width, depth, experts }, [o.hidden, width]),
      ...(o.usageDecay > 0 ? { monitor: usageMonitor(o.block) } : {}),
      flopsPerRow: 4 * width * o.hidden + 2 * rank * (width + o.hidden),
      forward: (p, x, groups, c) => {
        const h = expertLinear(x, tensorOf(p, 'up'), groups, c, true);
        // In blocks, what a controller sees of a row does not depend on how many rows its expert has.
        const low = evenForRows(c.rows, tensorOf(p, 'low'));
        const t = groupedMatmul(x, low, groups, { transB: true, compute: 'f32', out: 'f32' });
        let a = maskedUnits(o, p, h, t, c, groups.offsets);
        if (c.random && o.dropout > 0) a = dropout(a, c.random, o.dropout, c.nextStream());
        return expertLinear(a, tensorOf(p, 'down'), groups, c, false);
      },
    };
  },
});
