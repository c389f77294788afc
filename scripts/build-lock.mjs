// One build at a time in a checkout: a lock file that names its owner, who touches it while at work.
import { readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';

const beat = 2000; // milliseconds between touches

/** Whether the owner has ended without removing the lock (kill -9, a crash, a power cut). */
function abandoned(path) {
  try {
    const [host, pid] = readFileSync(path, 'utf8').split('\n');
    if (Date.now() - statSync(path).mtimeMs > 10 * beat) return true;
    if (host !== hostname() || !pid) return false; // another machine or container: only time tells
    process.kill(Number(pid), 0); // sends nothing; throws when there is no such process
    return false;
  } catch (e) {
    return e.code === 'ESRCH';
  }
}

/**
 * Takes the lock, waiting for whoever holds it (`onWait` is called once then). Returns the function that gives it back;
 * a process that exits gives it back too.
 */
export async function takeLock(path, onWait) {
  for (let waits = 0; ; waits++) {
    try {
      writeFileSync(path, `${hostname()}\n${process.pid}\n`, { flag: 'wx' });
      break;
    } catch (e) {
      if (e.code !== 'EEXIST') throw e;
    }
    if (abandoned(path)) {
      rmSync(path, { force: true });
      continue;
    }
    if (waits === 0) onWait();
    await new Promise((done) => setTimeout(done, 100));
  }
  const touch = setInterval(() => {
    try {
      utimesSync(path, new Date(), new Date());
    } catch {
      // the build folder was removed under us: the build itself will say so
    }
  }, beat);
  touch.unref();
  const release = () => {
    clearInterval(touch);
    process.removeListener('exit', release);
    rmSync(path, { force: true });
  };
  process.once('exit', release);
  return release;
}
