/** Every trick. Importing this registers them; add a line for a new folder. */
import './alibi/index.ts';
import './block-sparse-attention/index.ts';
import './conv-attention/index.ts';
import './encoder-decoder/index.ts';
import './fcm/index.ts';
import './fim/index.ts';
import './lsh-attention/index.ts';
import './hyena/index.ts';
import './moe/index.ts';
import './mup/index.ts';
import './nope/index.ts';
import './optimisers/index.ts';
import './prefix-lm/index.ts';
import './ul2/index.ts';
import './position-interpolation/index.ts';
import './t5-bias/index.ts';
import './window-attention/index.ts';
import './xpos/index.ts';
import './relu-l1/index.ts';
import './reversible/index.ts';
import './sparse-ffn/index.ts';
import './sparse-loss/index.ts';
import './sparse-qkv/index.ts';
import './terraformer/index.ts';
import './topk-ffn/index.ts';

export { allTricks, applyPatch, type ConfigPatch, registerTrick, type Trick, trick } from './registry.ts';
