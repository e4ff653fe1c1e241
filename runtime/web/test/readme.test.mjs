// What the README shows runs, and its map is true.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { openPage, skipped } from "./chromium.mjs";
import { bundle, cases } from "./fixtures.mjs";
import { startServer } from "./server.mjs";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const README = readFileSync(join(ROOT, "README.md"), "utf8");
const PLACE = mkdtempSync(join(tmpdir(), "xlstm-edge-readme-"));
after(() => rmSync(PLACE, { recursive: true }));

function block(language) {
  return new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\`$`, "ms").exec(README)[1];
}

test("the example for Node prints what it says", () => {
  mkdirSync(join(PLACE, "node_modules"));
  symlinkSync(ROOT, join(PLACE, "node_modules", "xlstm-edge"));
  symlinkSync(bundle("shipped-web"), join(PLACE, "bundle"));
  writeFileSync(join(PLACE, "example.mjs"), block("js"));
  const { stdout, stderr } = spawnSync(process.execPath, ["example.mjs"], { cwd: PLACE, encoding: "utf8" });
  assert.ok(stdout.endsWith(block("output").replace("...\n", "")), stdout + stderr);
});

test("the page runs", { skip: skipped }, async () => {
  const { prompt, pieces } = cases("models")["shipped-web"].texts[0];
  const server = await startServer();
  server.state.page = block("html");
  const browser = await openPage(server.url);
  try {
    await browser.page.waitForFunction(() => document.title === "done", null, { timeout: 60_000 });
    assert.equal(prompt, "To be");
    assert.equal(await browser.page.textContent("pre"), pieces.join(""));
    assert.deepEqual(browser.elsewhere, []);
  } finally {
    await browser.close();
    await server.close();
  }
});

test("the map names every module", () => {
  const listed = [...README.matchAll(/^ {4}(\w+\.ts) {2,}\S/gm)].map((match) => match[1]);
  assert.deepEqual(listed.sort(), readdirSync(join(ROOT, "src")).sort());
});

test("modules stay small, and say what they are", () => {
  for (const name of readdirSync(join(ROOT, "src"))) {
    const text = readFileSync(join(ROOT, "src", name), "utf8");
    assert.ok(text.startsWith("/**"), name);
    assert.ok(text.split("\n").length <= 300, name);
  }
});
