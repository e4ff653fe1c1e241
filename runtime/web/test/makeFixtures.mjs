// Has Python make the fixtures, unless they are there and newer than what makes them.
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), "../../..");
const FOLDER = resolve(ROOT, "runtime/web/.fixtures");
const PYTHON = process.env.XLSTM_EDGE_PYTHON ?? resolve(ROOT, ".venv/bin/python");
const SOURCES = ["tests/web_fixtures.py", "runtime/xlstm_edge_runtime", "exporters/xlstm_edge_exporters"];

/** When the newest Python file in a place was changed. */
function changed(place) {
  if (!statSync(place).isDirectory()) return place.endsWith(".py") ? statSync(place).mtimeMs : 0;
  return Math.max(0, ...readdirSync(place).map((name) => changed(resolve(place, name))));
}

if (existsSync(FOLDER) && SOURCES.every((place) => changed(resolve(ROOT, place)) < statSync(FOLDER).mtimeMs)) process.exit(0);
if (!existsSync(PYTHON)) {
  console.error(`expected Python with the project installed at ${PYTHON}, got none; make .venv, or set XLSTM_EDGE_PYTHON`);
  process.exit(1);
}
console.error("making the fixtures with Python, once: a minute");
const environment = {
  ...process.env,
  OMP_NUM_THREADS: "1",
  PYTHONPATH: ["", "exporters", "runtime"].map((part) => resolve(ROOT, part)).join(":"),
};
const words = ["-W", "ignore", "-m", "tests.web_fixtures", FOLDER];
process.exit(spawnSync(PYTHON, words, { cwd: ROOT, env: environment, stdio: "inherit" }).status ?? 1);
