/** A bundle's files in a folder, in Node: plain files, or links as the cache of the Hugging Face hub has them. */

import { BundleError, InputError, quoted, reason } from "./errors.js";
import { checkSignal, type Progress, type Source, tooLarge, wrongSize } from "./files.js";
import { MANIFEST } from "./layout.js";
import { LARGEST_MANIFEST } from "./manifest.js";
import type { FileEntry } from "./manifestSections.js";

const LONGEST_SHOWN_PATH = 240;
const PIECE = 1 << 22;

/** Node's own modules without an import, which a bundler for the web would look for. */
function node() {
  return { fs: process.getBuiltinModule("node:fs/promises"), path: process.getBuiltinModule("node:path") };
}

export class Folder implements Source {
  constructor(readonly folder: string) {
    if (folder.includes("\0")) throw new InputError("expected a bundle folder, got a path with a NUL; pass its path");
  }

  async manifest(): Promise<Uint8Array> {
    try {
      if ((await this.#inside(MANIFEST)) > LARGEST_MANIFEST) throw tooLarge();
      return await node().fs.readFile(this.path(MANIFEST));
    } catch (error) {
      if (error instanceof BundleError) throw error;
      const place = quoted(this.folder, LONGEST_SHOWN_PATH);
      throw new BundleError(`expected a bundle folder with ${MANIFEST} at ${place}, got ${spoken(error)}; check the path`, {
        cause: error,
      });
    }
  }

  async checkSizes(files: ReadonlyMap<string, FileEntry>): Promise<void> {
    for (const [name, { bytes }] of files) {
      const size = await this.#inside(name).catch((error: unknown) => {
        throw new BundleError(`expected the bundle's file ${name}, got ${spoken(error)}; copy the whole folder`, {
          cause: error,
        });
      });
      if (size !== bytes) throw wrongSize(name, bytes, size);
    }
  }

  async read(name: string, entry: FileEntry, progress: Progress): Promise<Uint8Array<ArrayBuffer>> {
    const content = new Uint8Array(entry.bytes);
    const file = await node().fs.open(this.path(name), "r");
    try {
      for (let at = 0; at < content.length; ) {
        checkSignal(progress.signal);
        const { bytesRead } = await file.read(content, at, Math.min(PIECE, content.length - at), at);
        if (!bytesRead) throw wrongSize(name, entry.bytes, at);
        at += bytesRead;
        progress.add(bytesRead);
      }
    } finally {
      await file.close();
    }
    return content;
  }

  async damaged(): Promise<boolean> {
    return false;
  }

  async accepted(): Promise<void> {}

  path(name: string): string {
    return node().path.join(this.folder, name);
  }

  /** Size of a regular file of the bundle; an error for none, and for a link that is not the Hugging Face cache's. */
  async #inside(name: string): Promise<number> {
    const { fs, path } = node();
    const found = await fs.lstat(this.path(name));
    if (!found.isSymbolicLink()) {
      if (!found.isFile()) throw new Error("no regular file");
      return found.size;
    }
    const snapshot = await fs.realpath(this.folder);
    const target = await fs.realpath(this.path(name));
    const blobs = path.join(path.dirname(path.dirname(snapshot)), "blobs");
    if (path.dirname(target) !== blobs || path.basename(path.dirname(snapshot)) !== "snapshots") {
      throw new Error("a link out of the folder");
    }
    const pointed = await fs.stat(target);
    if (!pointed.isFile()) throw new Error("no regular file");
    return pointed.size;
  }
}

/** What Node's errors mean, in words. */
function spoken(error: unknown): string {
  const code = (error as { code?: string }).code ?? "";
  const words: Record<string, string> = {
    ENOENT: "nothing",
    ENOTDIR: "no folder",
    EACCES: "one that may not be read",
    ENAMETOOLONG: "a name that is too long",
  };
  return words[code] ?? reason(error);
}
