// The playground in a real browser: everything that a visitor does, against a real server with two small runs.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { Browser, Page } from 'playwright-core';
import { findChromium, openBrowser, openPage, type Playground, startPlayground } from '../support/playground.ts';
import { until } from '../support/serve.ts';
import { createRun, temporaryFolder, tinyConfig, tinyData, trainRun, writeText } from '../support/tiny-data.ts';

const chromium = findChromium();
if (!chromium) process.stderr.write('\nSKIPPED: no Chromium in PATH, the playground is not tested in a browser\n\n');

describe('playground', { skip: chromium ? false : 'no Chromium in PATH (apt-get install chromium)' }, () => {
  const folder = temporaryFolder('web');
  const [experts, holes] = ['river-experts', 'river-holes'].map((name) => join(folder, name));
  let site: Playground;
  let browser: Browser;

  before(async () => {
    const data = await tinyData(join(folder, 'data'), writeText(join(folder, 'text'), 'small'));
    const vocab = data.prepared.tokenizer.vocabSize + 3;
    const expert = { kind: 'glu', hidden: 32 } as const;
    const model = { vocab, context: 3000 };
    const how = { steps: 40, batch: 8, length: 64 };
    const moe = { ...model, ffn: { kind: 'moe', experts: 6, active: 2, expert } } as const;
    await trainRun(await createRun(experts, tinyConfig(data, { ...how, name: 'river-experts', model: moe })));
    const fim = { kind: 'fim', rate: 0.9 } as const;
    await trainRun(await createRun(holes, tinyConfig(data, { ...how, name: 'river-holes', model, objective: fim })));
    site = await startPlayground([experts, holes], join(folder, 'server'));
    browser = await openBrowser(chromium!);
  });
  after(async () => {
    await browser?.close();
    await site?.close();
  });

  const answer = (page: Page) => page.locator('[data-test=answer]').last();
  const tokens = (page: Page) => answer(page).locator('.t');
  const done = (page: Page) => answer(page).locator('[data-test=stats]').waitFor();
  const most = (page: Page, n: number) => page.getByLabel('Most tokens').fill(String(n));
  async function ask(page: Page, question: string): Promise<void> {
    await page.locator('#message').fill(question);
    await page.keyboard.press('Enter');
  }

  test('loads under its policy, without errors, and asks nobody but the server', async () => {
    const { page, errors, urls } = await openPage(browser, site.url);
    const policy = (await page.request.get(site.url)).headers()['content-security-policy'];
    assert.match(policy, /default-src 'none'.*script-src 'self'/);
    await page.getByText('Talk to river-experts').waitFor();
    const card = await page.locator('[data-test=model-card]').innerText();
    assert.match(card, /moe, 6 experts, 2 active/);
    assert.match(card, /\d\.\d{3} bits\/byte/);
    assert.match(card, /40 steps/);
    await most(page, 12);
    await ask(page, 'the small river');
    await done(page);
    await page.getByText('Look inside').click();
    await page.locator('[data-test=heat-map]').waitFor();
    assert.deepEqual(errors, []);
    assert.ok(urls.length >= 5);
    assert.deepEqual(
      urls.filter((u) => !u.startsWith(`${site.url}/`)),
      [],
    );
    await page.context().close();
  });

  test('an answer streams, says how fast it was, and Escape stops it', async () => {
    const { page, errors } = await openPage(browser, site.url);
    await most(page, 2900);
    // The likeliest tokens of a small model go round and round: no end comes by itself.
    await page.getByLabel('Temperature, typed').fill('0');
    await page.keyboard.press('Tab');
    await ask(page, 'the small river');
    await tokens(page).nth(3).waitFor();
    const early = await tokens(page).count();
    assert.equal(await answer(page).getAttribute('aria-busy'), 'true', 'shown while it is being written');
    await tokens(page)
      .nth(early + 5)
      .waitFor();
    await page.keyboard.press('Escape');
    await done(page);
    assert.match(await answer(page).locator('[data-test=stats]').innerText(), /tokens\/s · first after .*stopped/);
    const stopped = await tokens(page).count();
    assert.ok(stopped < 2900, `${stopped} tokens`);
    // Spaces, most of them: they take lines as words do.
    const [column, last] = [await answer(page).boundingBox(), await tokens(page).last().boundingBox()];
    assert.ok(last!.x + last!.width <= column!.x + column!.width + 1);
    await page.waitForTimeout(200);
    assert.equal(await tokens(page).count(), stopped);
    // The server has let go of it too.
    const request = site.requests.filter((q) => q.path === '/v1/chat/completions').at(-1)!;
    assert.deepEqual([request.status, request.completionTokens! < 2900], [499, true]);
    assert.deepEqual(errors, []);
    await page.context().close();
  });

  test('the end of a long text stays in sight, unless its reader scrolls away', async () => {
    const { page, errors } = await openPage(browser, site.url, { viewport: { width: 700, height: 500 } });
    const top = async (): Promise<number> => (await page.evaluate('scrollY')) as number;
    // In one go: while a text is written, its last token is soon another one.
    const shown = async (what: string): Promise<boolean> =>
      (await page.evaluate(`(() => {
        const { top, bottom } = [...document.querySelectorAll('${what}')].at(-1).getBoundingClientRect();
        return top >= 0 && bottom <= innerHeight;
      })()`)) as boolean;
    const taller = (than: number) =>
      until(
        'the text is long',
        async () => Number(await page.evaluate('document.documentElement.scrollHeight')) > than,
        20,
      );
    await page.getByRole('button', { name: 'Settings', exact: true }).click();
    await most(page, 800);
    await page.getByLabel('Seed').fill('7');
    await page.getByRole('button', { name: 'Close', exact: true }).click();
    await ask(page, 'the small river');
    await taller(600);
    assert.ok((await top()) > 0, 'while it is written');
    assert.ok(await shown('[data-test=answer] .t'));
    await done(page);
    assert.ok(await shown('[data-test=stats]'), 'with what stands below it');
    await ask(page, 'the small river');
    await tokens(page).nth(100).waitFor();
    await page.evaluate('scrollTo(0, 10)');
    await tokens(page).nth(300).waitFor();
    assert.equal(await top(), 10, 'somebody reads');
    await done(page);
    assert.equal(await top(), 10);

    await page.getByRole('button', { name: 'Complete', exact: true }).click();
    await page.getByLabel('Text to go on from').fill('the small river');
    await page.keyboard.press('Control+Enter');
    await taller(600);
    assert.ok((await top()) > 0);
    assert.ok(await shown('[data-test=made] .t'));
    await page.evaluate('scrollTo(0, 0)');
    assert.ok(await shown('.bar button'), 'what stops it and goes on is at hand');
    assert.deepEqual(errors, []);
    await page.context().close();
  });

  test('alternatives of a token, and an answer that goes on from one of them', async () => {
    const { page, errors } = await openPage(browser, site.url);
    await most(page, 24);
    await ask(page, 'the small river');
    await done(page);
    const before = await tokens(page).allInnerTexts();
    await tokens(page).nth(5).click();
    const rows = page.locator('.card .row');
    await rows.first().waitFor();
    assert.ok((await rows.count()) >= 8);
    const shares = (await page.locator('.card .p').allInnerTexts()).map((p) => Number.parseFloat(p.replace('<', '')));
    for (let k = 1; k < 8; k++) assert.ok(shares[k] <= shares[k - 1], `${shares}: likeliest first`);
    // Not one that ends the text.
    const other = page.locator('.card .row:not(:disabled)', { hasNotText: /<\||↵/ }).nth(1);
    const text = await other.locator('code').innerText();
    await other.click();
    await answer(page).locator('.forced').waitFor();
    await done(page);
    const now = await tokens(page).allInnerTexts();
    assert.deepEqual(now.slice(0, 5), before.slice(0, 5), 'what came before stays');
    assert.equal(now[5].replace(/ /g, '␣'), text);
    assert.equal(await answer(page).locator('.forced').count(), 1);
    assert.ok(now.length > 6, 'and the run went on');
    assert.deepEqual(errors, []);
    await page.context().close();
  });

  test('keys reach everything: tokens by arrows, the list by Enter, back by Escape', async () => {
    const { page } = await openPage(browser, site.url);
    await most(page, 8);
    await ask(page, 'the small river');
    await done(page);
    await page.getByRole('group', { name: /^Answer/ }).focus();
    await page.keyboard.press('ArrowRight');
    await page.keyboard.press('ArrowRight');
    assert.equal(await answer(page).locator('.t.at').getAttribute('data-k'), '1');
    await page.keyboard.press('Enter');
    await page.waitForFunction("document.activeElement?.closest('.card')");
    await page.keyboard.press('Escape');
    await page.locator('.card').waitFor({ state: 'detached' });
    assert.equal(await answer(page).locator('.t.at').count(), 0);
    await page.context().close();
  });

  test('completion: Ctrl+Enter goes on, and the map has a cell for every expert of every layer', async () => {
    const { page, errors } = await openPage(browser, site.url);
    await page.getByRole('button', { name: 'Complete' }).click();
    await most(page, 20);
    await page.getByLabel('Text to go on from').fill('the small river follows the ');
    await page.keyboard.press('Control+Enter');
    await page.locator('[data-test=stats]').waitFor();
    assert.equal(await page.locator('[data-test=made] .t').count(), 20);
    await page.keyboard.press('Control+Enter');
    await page.locator('[data-test=made] .t').nth(39).waitFor();
    await page.getByText('Look inside').click();
    const map = page.locator('[data-test=heat-map]').first();
    await map.waitFor();
    assert.deepEqual([await map.getAttribute('data-rows'), await map.getAttribute('data-columns')], ['2', '6']);
    const all = await page.locator('[data-test=reads]').innerText();
    assert.match(all, /reads .* of .* of weights \(\d+%\).*2 of 6 experts a token in 2 layers/);
    // Experts serve different shares of the tokens: a row of cells has several colours.
    await page.waitForFunction(`(() => {
      const c = document.querySelector('[data-test=heat-map] canvas');
      if (!c.width || !c.height) return false;
      const { data } = c.getContext('2d').getImageData(0, Math.round(c.height / 4), c.width, 1);
      const seen = new Set();
      for (let k = 0; k < data.length; k += 4) seen.add(data.slice(k, k + 4).join());
      return seen.size > 3;
    })()`);
    await page.locator('.strip .t').nth(12).hover();
    await page.getByText('Experts, this token').waitFor();
    await page.getByText(/Expected here: “/).waitFor();
    const box = (await map.locator('canvas').boundingBox())!;
    await page.mouse.move(box.x + box.width - 20, box.y + 8);
    await page.getByText(/^Block 0, expert 5: /).waitFor();
    assert.deepEqual(errors, []);
    await page.context().close();
  });

  test('infilling: explained where a run cannot, and done where it can', async () => {
    const { page, errors } = await openPage(browser, site.url);
    await page.getByRole('button', { name: 'Infill' }).click();
    await page.getByText('river-experts was not trained to fill holes.').waitFor();
    assert.equal(await page.getByRole('button', { name: /^Fill/ }).isDisabled(), true);
    await page.locator('[data-test=cannot] button').click();
    assert.equal(await page.getByRole('combobox', { name: 'Run' }).inputValue(), 'river-holes');
    await most(page, 16);
    await page.getByLabel('Before the hole').fill('the small river ');
    await page.getByLabel('After it').fill(' the green garden.\n');
    await page.getByRole('button', { name: /^Fill/ }).click();
    await page.locator('[data-test=stats]').waitFor();
    const made = await page.locator('[data-test=made]').innerText();
    assert.ok(made.trim().length > 0);
    assert.doesNotMatch(made, /fim_/);
    assert.deepEqual(errors, []);
    await page.context().close();
  });

  test('switches between runs in the middle of a conversation', async () => {
    const { page } = await openPage(browser, site.url);
    await most(page, 6);
    await ask(page, 'the small river');
    await done(page);
    await page.getByRole('combobox', { name: 'Run' }).selectOption('river-holes');
    assert.match(await page.locator('[data-test=model-card]').innerText(), /glu, 64 hidden/);
    await ask(page, 'the green garden');
    await done(page);
    const stats = await page.locator('[data-test=stats]').allInnerTexts();
    assert.match(stats[0], /^river-experts · /);
    assert.match(stats[1], /^river-holes · /);
    await page.context().close();
  });

  test('text of a model is text, whatever it says', async () => {
    const { page, errors } = await openPage(browser, site.url);
    const evil = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>';
    await page.route('**/v1/chat/completions', (route) => {
      const entry = { token: evil, bytes: [...Buffer.from(evil)], logprob: -0.1 };
      const choice = {
        index: 0,
        delta: { content: evil },
        logprobs: { content: [{ ...entry, top_logprobs: [entry] }] },
      };
      const body = `data: ${JSON.stringify({ choices: [choice] })}\n\ndata: [DONE]\n\n`;
      return route.fulfill({ contentType: 'text/event-stream', body });
    });
    await ask(page, evil);
    await done(page);
    assert.equal(await tokens(page).first().innerText(), evil);
    await tokens(page).first().click();
    await page.locator('.card').waitFor();
    assert.equal(await page.locator('main img, main script').count(), 0);
    assert.equal(await page.evaluate('window.hacked'), undefined);
    assert.deepEqual(errors, []);
    await page.context().close();
  });

  test('a busy model, a missing one, and a server that is gone: one line each, and what to do', async (t) => {
    const busy = await startPlayground([experts], join(folder, 'busy'), { queue: 0 });
    t.after(busy.close);
    const { page } = await openPage(browser, busy.url);
    // A run that went away after the page had been loaded.
    await page.route('**/ansatz/models', async (route) => {
      const response = await route.fetch();
      const { data } = (await response.json()) as { data: { id: string }[] };
      await route.fulfill({ json: { data: [...data, { ...data[0], id: 'gone' }] } });
    });
    await page.reload();
    await ask(page, 'the small river');
    const alert = page.getByRole('alert');
    await alert.waitFor();
    assert.match(await alert.innerText(), /overloaded.*The model is busy: try again in a moment\./s);
    // What was not answered is no part of the conversation.
    const next = page.waitForRequest('**/v1/chat/completions');
    await ask(page, 'the large garden');
    const { messages } = (await next).postDataJSON() as { messages: object[] };
    assert.deepEqual(messages, [{ role: 'user', content: 'the large garden' }]);
    await page.getByRole('combobox', { name: 'Run' }).selectOption('gone');
    await page.getByRole('button', { name: 'New conversation' }).click();
    await ask(page, 'the small river');
    await alert.filter({ hasText: /'gone' does not exist.*Choose another run at the top\./s }).waitFor();
    await busy.close();
    await alert.getByRole('button', { name: 'Try again' }).click();
    await alert.filter({ hasText: /The server does not answer\. Check that `ansatz serve` still runs/ }).waitFor();
    await page.context().close();
  });

  test('a key is asked for only by a server that wants one, and kept in the tab', async (t) => {
    const key = 'sk-test-of-the-playground';
    const locked = await startPlayground([experts], join(folder, 'locked'), { key });
    t.after(locked.close);
    const { page, urls } = await openPage(browser, locked.url);
    const field = page.getByLabel('This server wants an API key.');
    await field.fill('sk-wrong');
    await page.keyboard.press('Enter');
    await page.getByText('The last one was refused.').waitFor();
    await field.fill(key);
    await page.keyboard.press('Enter');
    await page.getByText('Talk to river-experts').waitFor();
    await most(page, 4);
    await ask(page, 'the small river');
    await done(page);
    assert.equal(await page.evaluate('localStorage.length'), 0);
    assert.deepEqual(await page.evaluate('Object.values(sessionStorage)'), [key]);
    assert.deepEqual(
      urls.filter((u) => u.includes('sk-')),
      [],
    );
    await page.context().close();
  });

  test('a phone, in the dark: nothing is wider than the screen, and everything can be reached', async () => {
    const viewport = { width: 380, height: 760 };
    const phone = { viewport, hasTouch: true, isMobile: true, colorScheme: 'dark' } as const;
    const { page, errors } = await openPage(browser, site.url, phone);
    await page.getByRole('button', { name: 'Settings', exact: true }).tap();
    await most(page, 30);
    await page.getByRole('button', { name: 'Close', exact: true }).tap();
    await page.locator('#message').fill('the small river');
    await page.getByRole('button', { name: 'Send' }).tap();
    await done(page);
    await tokens(page).nth(2).tap();
    const sheet = (await page.locator('.float').boundingBox())!;
    assert.ok(
      Math.abs(sheet.x) <= 1 && Math.abs(sheet.width - 380) <= 1 && Math.abs(sheet.y + sheet.height - 760) <= 1,
    );
    await page.locator('.card .close').tap();
    await page.getByText('Look inside').tap();
    await page.locator('[data-test=heat-map]').waitFor();
    assert.equal(await page.evaluate('document.documentElement.scrollWidth'), 380);
    const colours = await page.evaluate(
      '(({ backgroundColor, color }) => [backgroundColor, color])(getComputedStyle(document.body))',
    );
    const [ground, ink] = (colours as string[]).map((c) => Number(/\d+/.exec(c)![0]));
    assert.ok(ground < 60 && ink > 200);
    assert.deepEqual(errors, []);
    await page.context().close();
  });
});
