/**
 * The built page in headless Chromium: XLSTM_EDGE_PAGE names its folder, XLSTM_EDGE_CHROMIUM the browser. With SCREENSHOTS, a folder, two
 * pictures of it are written there.
 */

import assert from "node:assert/strict";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";
import { server } from "./serve.mjs";

const FOLDER = process.env.XLSTM_EDGE_PAGE ?? new URL("../../build/web", import.meta.url).pathname;
const CHROMIUM = process.env.XLSTM_EDGE_CHROMIUM ?? "/usr/bin/chromium";
const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
// WebGPU without a GPU, and none of the browser's own requests.
const FLAGS = `--headless=new --no-sandbox --no-first-run --disable-background-networking --disable-component-update
  --disable-sync --disable-quic --enable-unsafe-webgpu --use-webgpu-adapter=swiftshader --use-vulkan=swiftshader
  --enable-features=Vulkan,WebGPUDeveloperFeatures --ignore-gpu-blocklist --disable-gpu-sandbox`.split(/\s+/);
const PATIENCE = { timeout: 300_000 }; // software renders slowly, and machines are shared
const missing = existsSync(CHROMIUM) ? false : `Chromium is not at ${CHROMIUM}`;
if (missing) console.log(`skipped: the page's tests, because ${missing}`);

let [served, origin, context, page, profile] = [];
const asked = new Set(); // origins of all requests

before(async () => {
  if (missing) return;
  served = server(FOLDER);
  await new Promise((resolve) => served.listen(0, "127.0.0.1", resolve));
  origin = `http://127.0.0.1:${served.address().port}`;
  profile = mkdtempSync(join(tmpdir(), "page-"));
  context = await chromium.launchPersistentContext(profile, { executablePath: CHROMIUM, args: FLAGS });
  context.on("request", (request) => asked.add(new URL(request.url()).origin));
  page = await context.newPage();
  page.setDefaultTimeout(PATIENCE.timeout);
  await page.goto(origin);
  await status("Ready.");
});

after(async () => {
  await context?.close();
  served?.close();
  if (profile) rmSync(profile, { recursive: true, force: true });
});

async function status(text) {
  await page.waitForFunction((wanted) => document.querySelector("#status").textContent.startsWith(wanted), text, PATIENCE);
}

const textOf = (selector) => page.locator(selector).evaluate((element) => element.textContent);
const tokens = async () => Number(await textOf("#count"));

async function set(values) {
  for (const [id, value] of Object.entries(values)) await page.fill(`#${id}`, String(value));
}

const options = { skip: missing, timeout: PATIENCE.timeout };

test("the keyboard alone writes a text", options, async () => {
  await set({ tokens: 24, temperature: 0.8, seed: 1 });
  await page.focus("#prompt");
  await page.keyboard.press("Control+A");
  await page.keyboard.type("JULIET:");
  await page.keyboard.press("Control+Enter");
  await status("Done.");
  const text = await textOf("#text");
  assert.match(text, /^JULIET:/);
  assert.ok(text.length > 30, text);
  assert.ok((await tokens()) >= 25);
  assert.match(await textOf("#speed"), /^\d+$/);
  assert.match(await textOf("#memory"), /MB$/);
});

test("Escape stops at a token", options, async () => {
  const before = await tokens();
  await set({ tokens: 10000 });
  await page.focus("#prompt");
  await page.keyboard.press("Control+Enter");
  await page.waitForFunction((count) => Number(document.querySelector("#count").textContent) > count + 8, before, PATIENCE);
  await page.keyboard.press("Escape");
  await status("Stopped.");
  const stopped = await tokens();
  assert.ok(stopped > before && stopped < before + 10000);
  await set({ tokens: 4 });
  await page.focus("#prompt");
  await page.keyboard.press("Control+Enter");
  await status("Done.");
  assert.equal(await tokens(), stopped + 5); // one new line, four tokens
});

test("a state that was saved goes on after a reload as it would have gone on", options, async () => {
  await set({ tokens: 16, seed: 7 });
  await page.click("#save");
  await status("Saved:");
  const [saved, count] = [await textOf("#text"), await tokens()];
  await page.click("#generate");
  await status("Done.");
  const wanted = await textOf("#text");
  await page.reload();
  await status("Ready.");
  assert.equal(await textOf("#text"), "");
  await page.click("#restore");
  await status("Restored");
  assert.equal(await textOf("#text"), saved);
  assert.equal(await tokens(), count);
  await page.fill("#prompt", "");
  await set({ tokens: 16, seed: 7, temperature: 0.8 });
  await page.click("#generate");
  await status("Done.");
  assert.equal(await textOf("#text"), wanted);
});

test("two branches of one state, one of which is kept", options, async () => {
  const [before, count] = [await textOf("#text"), await tokens()];
  await set({ tokens: 12, seed: 3 });
  await page.click("#branch");
  await status("Keep one");
  const texts = await page.locator("#branches .text").evaluateAll((all) => all.map((element) => element.textContent));
  assert.equal(texts.length, 2);
  assert.notEqual(texts[0], texts[1]);
  await page.click("text=Keep branch 2");
  await status("The text goes on");
  assert.equal(await textOf("#text"), before + texts[1]);
  assert.equal(await page.locator("#branches").isVisible(), false);
  await set({ tokens: 1 });
  await page.click("#generate");
  await status("Done.");
  assert.equal(await tokens(), count + 13 + 2);
});

test("memory is the same after many tokens", options, async () => {
  const memory = await textOf("#memory");
  await set({ tokens: 1500 });
  await page.click("#generate");
  await status("Done.");
  assert.equal(await textOf("#memory"), memory);
  const heights = await page.locator("#chart").evaluate((line) => line.getAttribute("points").split(" ").map((p) => p.split(",")[1]));
  assert.ok(heights.length > 20);
  assert.equal(new Set(heights.slice(1)).size, 1);
});

test("what is wrong is said in one sentence, and the page goes on", options, async () => {
  await page.evaluate(() => {
    document.querySelector("#temperature").removeAttribute("max");
    document.querySelector("#form").noValidate = true;
  });
  await set({ temperature: -1, tokens: 2 });
  await page.click("#generate");
  await status("expected ");
  assert.match(await page.locator("#status").getAttribute("class"), /error/);
  await set({ temperature: 0.8 });
  await page.click("#generate");
  await status("Done.");
  assert.equal(await page.inputValue("#prompt"), "");
});

test("what was typed stays where it could not be used, and nothing else can be chosen meanwhile", options, async () => {
  await page.fill("#prompt", "Enter GHOST");
  await set({ temperature: -1 });
  await page.click("#generate");
  await status("expected ");
  assert.equal(await page.inputValue("#prompt"), "Enter GHOST");
  assert.doesNotMatch(await textOf("#text"), /Enter GHOST/);
  await set({ temperature: 0.8, tokens: 10000 });
  await page.click("#generate");
  await status("Writing");
  assert.equal(await page.locator('[value="webgpu"]').isDisabled(), true);
  await page.keyboard.press("Escape");
  await status("Stopped.");
  assert.equal(await page.inputValue("#prompt"), "");
  assert.equal(await page.locator('[value="webgpu"]').isDisabled(), false);
});

test("the server gives files of its folder, and nothing for what is no address", options, async () => {
  const get = (path) =>
    new Promise((resolve, reject) => {
      request({ port: served.address().port, host: "127.0.0.1", path }, (response) => resolve(response.resume().statusCode))
        .on("error", reject)
        .end();
    });
  const outside = `${FOLDER.replace(/\/$/, "")}-other`;
  mkdirSync(outside, { recursive: true });
  writeFileSync(join(outside, "secret.txt"), "secret");
  try {
    for (const path of ["/%", "/%00", "//", "/nothing", "/bundle", `/..%2f${basename(outside)}/secret.txt`, "/..%2f..%2fMakefile"]) {
      assert.equal(await get(path), 404, path);
    }
    assert.equal(await get("/"), 200);
    assert.equal(await get("/bundle/manifest.json?x"), 200);
  } finally {
    rmSync(outside, { recursive: true });
  }
});

test("a browser that keeps nothing shows the page all the same", options, async () => {
  const other = await context.newPage();
  await other.addInitScript(() => {
    indexedDB.open = () => {
      throw new Error("no");
    };
  });
  await other.goto(origin);
  await other.waitForFunction(() => document.querySelector("#status").textContent === "Ready.", undefined, PATIENCE);
  await other.close();
});

test("the text goes on from the same state on WebGPU", options, async () => {
  const count = await tokens();
  await page.check('[value="webgpu"]');
  await status("Ready.");
  await set({ tokens: 3 });
  await page.click("#generate");
  await status("Done.");
  assert.equal(await tokens(), count + 4);
});

test("nobody is kept out: axe finds nothing, and a phone's width does not scroll sideways", options, async () => {
  await page.addScriptTag({ path: AXE }).catch(() => page.evaluate(() => 0));
  const session = await context.newCDPSession(page);
  await session.send("Page.setBypassCSP", { enabled: true });
  await page.reload();
  await status("Ready.");
  await page.addScriptTag({ path: AXE });
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  assert.deepEqual(violations.map(({ id, nodes }) => [id, nodes[0].html]), []);
  await page.click("#restore");
  await set({ tokens: 60 });
  await page.click("#generate");
  await status("Done.");
  for (const [name, width, height] of [["phone", 360, 800], ["wide", 1100, 900]]) {
    await page.setViewportSize({ width, height });
    assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= width);
    if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, `page-${name}.png`), fullPage: true });
  }
});

test("without a network the page works as it did", options, async () => {
  await page.evaluate(() => navigator.serviceWorker.ready.then(() => undefined));
  await page.reload();
  await status("Ready.");
  await context.setOffline(true);
  served.closeAllConnections();
  await new Promise((resolve) => served.close(resolve));
  await page.reload();
  await status("Ready.");
  await page.click("#restore");
  await status("Restored");
  await set({ tokens: 3 });
  await page.click("#generate");
  await status("Done.");
  assert.deepEqual([...asked], [origin]);
});
