// node test/speed.mjs: tokens a second of the shipped model, greedy, medians of three runs of 200 tokens; never part of a
// test run.
import { load } from "../dist/index.js";
import { openPage, skipped } from "./chromium.mjs";
import { bundle } from "./fixtures.mjs";
import { startServer } from "./server.mjs";

/** Runs here and in a page, so it stands for itself. */
async function rate(model) {
  const rates = [];
  for (let run = 0; run < 3; run++) {
    for await (const event of model.session().generate([5, 17, 3], { maxTokens: 200, ignoreEos: true })) {
      if (event.type === "finish") rates.push(200 / event.timings.generateSeconds);
    }
  }
  return rates.sort((a, b) => a - b)[1];
}

function tell(where, tokens) {
  console.log(`${where.padEnd(40)} ${tokens.toFixed(0)} tokens/s`);
}

for (const name of ["shipped-web", "shipped-int8"]) {
  for (const [provider, threads] of [
    ["cpu", 1],
    ["cpu", 2],
    ["wasm", 1],
  ]) {
    tell(`${name}, Node, ${provider}, ${threads} thread(s)`, await rate(await load(bundle(name), { provider, threads })));
  }
  for (const threads of skipped ? [] : [1, 2]) {
    const server = await startServer({ isolated: true });
    const browser = await openPage(server.url);
    const found = await browser.page.evaluate(
      async ({ name, threads, source }) => {
        const { load } = await import("/dist/index.js");
        const model = await load(`/bundles/${name}`, { threads });
        // biome-ignore lint/security/noGlobalEval: the function of this file
        return globalThis.eval(`(${source})`)(model);
      },
      { name, threads, source: `${rate}` },
    );
    tell(`${name}, Chromium, wasm, ${threads} thread(s)`, found);
    await browser.close();
    await server.close();
  }
}
