/**
 * What a first visit costs: node measure.mjs [FOLDER]. Bytes, and seconds to "Ready" and to the first piece of text, of a first
 * visit and of a second one, in headless Chromium on this machine, medians of five. No network is in the way: add its time.
 */

import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { chromium } from "playwright-core";
import { server } from "./serve.mjs";

const folder = process.argv[2] ?? new URL("../../build/web", import.meta.url).pathname;
const ROUNDS = 5;
const served = server(folder);
await new Promise((resolve) => served.listen(0, "127.0.0.1", resolve));
const origin = `http://127.0.0.1:${served.address().port}`;
const args = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"];

async function visit(page) {
  const begin = performance.now();
  await page.goto(origin);
  await page.waitForFunction(() => document.querySelector("#status").textContent === "Ready.");
  const ready = performance.now() - begin;
  await page.click("#generate");
  await page.waitForFunction(() => document.querySelector("#text .written")?.textContent);
  const first = performance.now() - begin;
  await page.waitForFunction(() => document.querySelector("#status").textContent === "Done.");
  return { ready, first, speed: Number(await page.textContent("#speed")) };
}

const visits = { first: [], second: [] };
for (let round = 0; round < ROUNDS; round++) {
  const profile = mkdtempSync(join(tmpdir(), "page-"));
  const context = await chromium.launchPersistentContext(profile, { executablePath: process.env.XLSTM_EDGE_CHROMIUM ?? "/usr/bin/chromium", args });
  for (const kind of ["first", "second"]) {
    const page = await context.newPage();
    visits[kind].push(await visit(page));
    await page.evaluate(() => navigator.serviceWorker.ready.then(() => undefined));
    await page.close();
  }
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
served.close();

const median = (numbers) => numbers.sort((a, b) => a - b)[Math.floor(numbers.length / 2)];
for (const [kind, found] of Object.entries(visits)) {
  const [ready, first, speed] = ["ready", "first", "speed"].map((name) => median(found.map((visit) => visit[name])));
  console.log(`${kind} visit: ready after ${(ready / 1000).toFixed(2)} s, first text after ${(first / 1000).toFixed(2)} s, ${speed} tokens/s`);
}

const all = readdirSync(folder, { recursive: true }).filter((name) => statSync(join(folder, name)).isFile());
const parts = {
  "page and runtime": (name) => !name.startsWith("ort/") && !name.startsWith("bundle/") && !/webgpu/.test(name),
  WebAssembly: (name) => name.startsWith("ort/") && !name.includes("asyncify"),
  bundle: (name) => name.startsWith("bundle/") && !name.endsWith("vectors.json"),
  "WebGPU instead": (name) => /asyncify|webgpu/.test(name),
};
for (const [part, belongs] of Object.entries(parts)) {
  const contents = all.filter(belongs).map((name) => readFileSync(join(folder, name)));
  const sum = (sizes) => (sizes.reduce((total, size) => total + size, 0) / 1e6).toFixed(2);
  console.log(`${part}: ${sum(contents.map((c) => c.length))} MB, ${sum(contents.map((c) => gzipSync(c).length))} MB with gzip`);
}
