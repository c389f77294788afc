/**
 * How often the event loop of this thread comes round while `work` is under way. Work that holds the thread lets it
 * come round once at most for every piece that it holds it for; turns are counted rather than timers, for those come
 * as late as a busy machine likes.
 */
export async function turnsDuring(work: () => Promise<unknown>): Promise<number> {
  let turns = 0;
  let pending = true;
  const turn = () => {
    turns++;
    if (pending) setImmediate(turn);
  };
  setImmediate(turn);
  await work().finally(() => {
    pending = false;
  });
  return turns;
}
