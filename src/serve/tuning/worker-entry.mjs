// The training process of a job: the TypeScript sources run as they are, through tsx.
import { register } from 'tsx/esm/api';

register();
await import('./worker.ts');
