/** Serve a built page on this machine alone: node serve.mjs FOLDER [PORT]. Any web server does; this one needs no set-up. */

import { createReadStream, existsSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";

const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".mjs": "text/javascript; charset=utf-8",
  ".json": "application/json",
  ".wasm": "application/wasm",
};

/** A server of a folder, not yet listening. */
export function server(folder) {
  const root = resolve(folder);
  return createServer((request, response) => {
    const file = fileOf(root, request.url ?? "/");
    if (file === null) {
      response.writeHead(404).end("not found\n");
      return;
    }
    response.writeHead(200, {
      "Content-Type": TYPES[extname(file)] ?? "application/octet-stream",
      "Content-Length": statSync(file).size,
      "Cache-Control": "no-cache",
      // What threads in WebAssembly ask for.
      "Cross-Origin-Opener-Policy": "same-origin",
      "Cross-Origin-Embedder-Policy": "require-corp",
    });
    if (request.method === "HEAD") response.end();
    else createReadStream(file).pipe(response);
  });
}

/** The file inside `root` that an address names; null for none, and for what is no address. */
function fileOf(root, address) {
  let path;
  try {
    path = decodeURIComponent(new URL(address, "http://localhost").pathname);
  } catch {
    return null;
  }
  if (path.includes("\0")) return null;
  const file = normalize(join(root, path.endsWith("/") ? `${path}index.html` : path));
  const inside = file.startsWith(root + sep);
  return inside && existsSync(file) && statSync(file).isFile() ? file : null;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const port = Number(process.argv[3] ?? 8000);
  const made = server(process.argv[2] ?? "build/web");
  made.on("error", (error) => {
    console.error(`error: expected a free port, got ${error.code} for ${port}; pass another: node serve.mjs FOLDER PORT`);
    process.exitCode = 2;
  });
  made.listen(port, "127.0.0.1", () => console.log(`http://127.0.0.1:${port}/  (Ctrl-C ends)`));
}
