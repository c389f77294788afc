// Colours by SGR codes (ECMA-48 8.3.117); without colours the text comes back as it is.
export class Style {
  readonly enabled: boolean;

  constructor(enabled: boolean) {
    this.enabled = enabled;
  }

  readonly bold = (text: string) => this.#wrap(text, 1, 22);
  readonly dim = (text: string) => this.#wrap(text, 2, 22);
  readonly red = (text: string) => this.#wrap(text, 31, 39);
  readonly green = (text: string) => this.#wrap(text, 32, 39);
  readonly yellow = (text: string) => this.#wrap(text, 33, 39);
  readonly blue = (text: string) => this.#wrap(text, 34, 39);
  readonly magenta = (text: string) => this.#wrap(text, 35, 39);
  readonly cyan = (text: string) => this.#wrap(text, 36, 39);

  #wrap(text: string, on: number, off: number): string {
    return this.enabled && text !== '' ? `\x1b[${on}m${text}\x1b[${off}m` : text;
  }
}
