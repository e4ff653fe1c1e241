/** Build the page: node build.mjs FOLDER. The bundle lies in FOLDER/bundle already. */

import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "../../build/web");
const ort = join(here, "node_modules/onnxruntime-web/dist");
// What onnxruntime-web fetches when it starts: for WebAssembly alone, and with WebGPU.
const STARTED = /^ort-wasm-simd-threaded(\.asyncify)?\.(mjs|wasm)$/;

mkdirSync(join(out, "ort"), { recursive: true });
const { metafile } = await build({
  metafile: true,
  entryPoints: [join(here, "page.js"), join(here, "worker.js")],
  outdir: out,
  bundle: true,
  minify: true,
  format: "esm",
  splitting: true,
  target: "es2022",
  external: ["node:*", "onnxruntime-node"],
  // Without the WebAssembly inlined by address: it comes from `ort/`.
  conditions: ["onnxruntime-web-use-extern-wasm", "browser", "import", "default"],
  logLevel: "warning",
});
const pages = ["index.html", "style.css"];
const started = readdirSync(ort).filter((name) => STARTED.test(name));
for (const name of pages) cpSync(join(here, name), join(out, name));
for (const name of started) cpSync(join(ort, name), join(out, "ort", name));

// What this build made: an earlier one may have left files of other names.
const bundled = Object.keys(metafile.outputs).map((name) => relative(out, name));
const files = [...bundled, ...pages, ...started.map((name) => `ort/${name}`)].sort();
const version = createHash("sha256");
for (const name of files) version.update(name).update(readFileSync(join(out, name)));
// The start page, and one onnxruntime: the other comes when it is chosen.
const kept = ["./", ...files.filter((name) => !name.includes(".asyncify."))];
const offline = readFileSync(join(here, "offline.js"), "utf8")
  .replace("[/* files */]", JSON.stringify(kept))
  .replace("/* version */", version.digest("hex").slice(0, 16));
writeFileSync(join(out, "offline.js"), offline);
