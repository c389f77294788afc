/** Stop strings over text that comes in pieces: nothing is let out that may still turn out to begin one. */
export class StopStrings {
  private readonly stops: readonly string[];
  private held = '';
  /** The stop string that was found. */
  found: string | null = null;

  constructor(stops: readonly string[]) {
    this.stops = stops.filter((s) => s.length > 0);
  }

  /** Text that can be let out, now that `text` has come. After a stop string was found, nothing more. */
  push(text: string): string {
    if (this.found !== null) return '';
    const all = this.held + text;
    let end = Number.POSITIVE_INFINITY;
    for (const stop of this.stops) {
      const at = all.indexOf(stop);
      if (at >= 0 && at < end) {
        end = at;
        this.found = stop;
      }
    }
    if (this.found !== null) {
      this.held = '';
      return all.slice(0, end);
    }
    const keep = this.beginnings(all);
    this.held = all.slice(all.length - keep);
    return all.slice(0, all.length - keep);
  }

  /** Text in which nothing stops: it goes out with what was held back. */
  pass(text: string): string {
    return this.found === null ? this.end() + text : '';
  }

  /** What was held back, when the text has ended without a stop string. */
  end(): string {
    const rest = this.held;
    this.held = '';
    return rest;
  }

  /** Length of the longest end of `text` that begins a stop string. */
  private beginnings(text: string): number {
    let longest = 0;
    for (const stop of this.stops)
      for (let n = Math.min(stop.length - 1, text.length); n > longest; n--)
        if (text.endsWith(stop.slice(0, n))) longest = n;
    return longest;
  }
}
