// One bundle, one seed, one text: the golden one, which Python, C and boards are held to as well.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { load } from "../dist/index.js";
import { openPage, skipped } from "./chromium.mjs";
import { bundle, camel } from "./fixtures.mjs";
import { startServer } from "./server.mjs";

const GOLDEN = new URL("../../../tests/golden/shakespeare.json", import.meta.url);
const { prompt, prompt_ids, options, text } = JSON.parse(readFileSync(GOLDEN, "utf8"));

for (const provider of ["cpu", "wasm"]) {
  test(`the golden text on ${provider} in Node`, async () => {
    const model = await load(bundle("shipped-cpu"), { provider, threads: 1 });
    assert.deepEqual(await model.encode(prompt), prompt_ids);
    let told = "";
    for await (const piece of model.stream(prompt, camel(options))) told += piece;
    assert.equal(told, text);
  });
}

test("the golden text in Chromium", { skip: skipped }, async () => {
  const server = await startServer();
  const { page, close } = await openPage(server.url);
  try {
    const told = await page.evaluate(
      async ({ prompt, options }) => {
        const { load } = await import("/dist/index.js");
        let text = "";
        const model = await load("/bundles/shipped-cpu", { provider: "wasm" });
        for await (const piece of model.stream(prompt, options)) text += piece;
        return text;
      },
      { prompt, options: camel(options) },
    );
    assert.equal(told, text);
  } finally {
    await close();
    await server.close();
  }
});
