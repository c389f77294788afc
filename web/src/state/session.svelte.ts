/** The server's runs, the one in use, and the key if the server wants one. */
import { storedKey, storeKey } from '../lib/api.ts';
import { type ApiError, asError } from '../lib/errors.ts';
import { type ModelCard, models } from '../lib/inside.ts';

export class Session {
  models = $state.raw<readonly ModelCard[]>([]);
  id = $state('');
  loading = $state(true);
  error = $state.raw<ApiError | null>(null);
  /** The server has asked for a key. */
  locked = $state(false);
  hasKey = $state(storedKey() !== '');

  get model(): ModelCard | undefined {
    return this.models.find((m) => m.id === this.id);
  }

  async load(): Promise<void> {
    this.loading = true;
    this.error = null;
    try {
      this.models = await models();
      this.locked = false;
      if (!this.model) this.id = this.models[0]?.id ?? '';
    } catch (error) {
      this.error = asError(error);
      this.locked = this.error.status === 401;
    } finally {
      this.loading = false;
    }
  }

  /** Notes an error of any request: a key may be wanted. */
  saw(error: ApiError | null): void {
    if (error?.status === 401) this.locked = true;
  }

  async unlock(key: string): Promise<void> {
    storeKey(key.trim());
    this.hasKey = key.trim() !== '';
    await this.load();
  }
}
