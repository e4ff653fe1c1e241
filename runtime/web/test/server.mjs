// A server for tests: files of this package and its fixtures, with ranges, broken connections on demand, and a log of what
// was asked.
import { createReadStream, existsSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { FOLDER } from "./fixtures.mjs";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm" };
const PAGE = `<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><script type="importmap">{"imports": {
  "onnxruntime-web/wasm": "/node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
  "onnxruntime-web/webgpu": "/node_modules/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs",
  "@huggingface/tokenizers": "/node_modules/@huggingface/tokenizers/dist/tokenizers.mjs"
}}</script>`;
const WORKER = `
import * as onnxruntime from "/node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";
import * as tokenizers from "/node_modules/@huggingface/tokenizers/dist/tokenizers.mjs";
import { serve } from "/dist/worker.js";
serve({ onnxruntime, tokenizers });`;

/** Listening on a free port; `isolated` sends COOP and COEP, `shared` lets other origins read. */
export async function startServer({ isolated = false, shared = false } = {}) {
  const state = { asked: [], breakAfter: null, ranges: true, damage: null, spoilRanges: false, wrongRanges: false, page: PAGE };
  const server = createServer((request, response) => answer(request, response, state, isolated, shared));
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const url = `http://127.0.0.1:${server.address().port}/`;
  return { url, state, close: () => new Promise((resolve) => server.close(resolve).closeAllConnections()) };
}

function answer(request, response, state, isolated, shared) {
  const path = new URL(request.url, "http://host").pathname;
  state.asked.push(`${path} ${request.headers.range ?? ""}`.trim());
  if (shared) response.setHeader("Access-Control-Allow-Origin", "*");
  if (isolated) {
    response.setHeader("Cross-Origin-Opener-Policy", "same-origin");
    response.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
  }
  if (path === "/" || path === "/worker.js") {
    response.setHeader("Content-Type", path === "/" ? "text/html" : "text/javascript");
    return response.end(path === "/" ? state.page : WORKER);
  }
  const root = /^\/bundles?\//.test(path) ? FOLDER : ROOT;
  const name = path.replace(/^\/node_modules\/xlstm-edge\//, "/").replace(/^\/bundle\//, "/bundles/shipped-web/");
  const file = join(root, normalize(name));
  if (!file.startsWith(root) || !existsSync(file) || !statSync(file).isFile()) {
    response.statusCode = 404;
    return response.end("no such file");
  }
  send(file, request, response, state);
}

function send(file, request, response, state) {
  const size = statSync(file).size;
  const range = state.ranges ? /^bytes=(\d+)-$/.exec(request.headers.range ?? "") : null;
  const start = range ? Number(range[1]) : 0;
  response.setHeader("Content-Type", TYPES[extname(file)] ?? "application/octet-stream");
  response.setHeader("Content-Length", size - start);
  if (range) {
    response.statusCode = 206;
    response.setHeader("Content-Range", `bytes ${start + (state.wrongRanges ? 1 : 0)}-${size - 1}/${size}`);
  }
  const isLarge = file.endsWith(".data");
  const end = isLarge && state.breakAfter !== null ? Math.min(size, start + state.breakAfter) - 1 : size - 1;
  const damaged = (range !== null && state.spoilRanges) || (state.damage !== null && file.endsWith(state.damage));
  const stream = createReadStream(file, { start, end });
  stream.on("data", (part) => {
    if (damaged) part[0] ^= 1;
    response.write(part);
  });
  stream.on("end", () => {
    if (end === size - 1) response.end();
    else setTimeout(() => response.destroy(), 50); // after what was written has left
  });
}
