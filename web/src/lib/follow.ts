/** Keeps the end of the page in sight while it grows, unless its reader has scrolled away from it. */
const NEAR = 80;

export class Follower {
  private following = true;
  /** Where the page was when it was looked at last. */
  private at = 0;

  /** More has come. */
  grown(): void {
    // Whoever has just scrolled up is believed before the event of it arrives.
    if (document.documentElement.scrollTop < this.at) this.scrolled();
    if (this.following) this.toEnd();
  }

  toEnd(): void {
    this.following = true;
    // What sticks to the edge of the window is in view already: the page itself has to move.
    window.scrollTo({ top: document.documentElement.scrollHeight, behavior: 'instant' });
    this.at = document.documentElement.scrollTop;
  }

  /** The page was scrolled, by whoever. */
  readonly scrolled = (): void => {
    const { scrollHeight, scrollTop, clientHeight } = document.documentElement;
    // An event of ours may arrive after the page has grown further.
    if (scrollTop === this.at) return;
    this.at = scrollTop;
    this.following = scrollHeight - scrollTop - clientHeight < NEAR;
  };
}
