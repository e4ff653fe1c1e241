// node relay.mjs BUNDLE IN OUT: a snapshot goes on in Chromium for two tokens (in Node on WebAssembly where there is none),
// and is
// saved there; says where it was.
import { readFileSync, writeFileSync } from "node:fs";
import { openPage, skipped } from "./chromium.mjs";
import { bundle } from "./fixtures.mjs";
import { startServer } from "./server.mjs";

const [name, from, to] = process.argv.slice(2);
const IDS = [6, 7];
const snapshot = readFileSync(from);

async function inChromium() {
  const server = await startServer();
  const browser = await openPage(server.url);
  const saved = await browser.page.evaluate(
    async ({ name, snapshot, ids }) => {
      const xe = await import("/dist/index.js");
      const session = (await xe.load(`/bundles/${name}`)).session();
      await session.load(new Uint8Array(snapshot));
      await session.prefill(ids);
      return Array.from(await session.save());
    },
    { name, snapshot: [...snapshot], ids: IDS },
  );
  await browser.close();
  await server.close();
  return Uint8Array.from(saved);
}

async function inNode() {
  const { load } = await import("../dist/index.js");
  const session = (await load(bundle(name), { provider: "wasm" })).session();
  await session.load(snapshot);
  await session.prefill(IDS);
  return session.save();
}

writeFileSync(to, skipped ? await inNode() : await inChromium());
console.log(skipped ? "node" : "chromium");
