// Chromium without a window, by playwright-core; and whether there is one.
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const PATH = process.env.XLSTM_EDGE_CHROMIUM ?? "/usr/bin/chromium";
const ALWAYS = [
  "--no-sandbox",
  "--headless=new",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--js-flags=--expose-gc",
];
const GPU = [
  "--enable-unsafe-webgpu",
  "--use-webgpu-adapter=swiftshader",
  "--enable-features=Vulkan,WebGPUDeveloperFeatures",
  "--use-vulkan=swiftshader",
  "--ignore-gpu-blocklist",
  "--disable-gpu-sandbox",
];

/** false, or why the tests of Chromium are skipped. */
export const skipped = existsSync(PATH) ? false : `no Chromium at ${PATH}: install it, or set XLSTM_EDGE_CHROMIUM`;
if (skipped) console.error(`SKIPPED: the tests in Chromium; ${skipped}`);

/** A page of a profile of its own at an address, which fails on anything that asks another host; with `close`. */
export async function openPage(url, { gpu = false } = {}) {
  const profile = mkdtempSync(join(tmpdir(), "xlstm-edge-chromium-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: PATH,
    args: [...ALWAYS, ...(gpu ? GPU : ["--disable-gpu"])],
  });
  const elsewhere = [];
  context.on("request", (request) => {
    if (!request.url().startsWith(url) && !/^(data|blob):/.test(request.url())) elsewhere.push(request.url());
  });
  const page = context.pages()[0] ?? (await context.newPage());
  page.on("pageerror", (error) => console.error("page:", error.message));
  await page.goto(url);
  const close = async () => {
    await context.close();
    rmSync(profile, { recursive: true, force: true });
  };
  return { page, elsewhere, close };
}
