/** Makes a text area as tall as its text, in browsers that cannot do so by themselves (`field-sizing: content`). */
export function grow(area: HTMLTextAreaElement): (() => void) | undefined {
  if (CSS.supports('field-sizing', 'content')) return undefined;
  const fit = (): void => {
    area.style.height = 'auto';
    area.style.height = `${area.scrollHeight}px`;
  };
  area.addEventListener('input', fit);
  fit();
  return () => area.removeEventListener('input', fit);
}
