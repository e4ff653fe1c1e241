/**
 * Where a bundle's files come from: files that a user picked, or a folder in Node. (`http` is the third.) Sizes are compared
 * before a file is read, hashes before its content is used.
 */

import { BundleError, CancelledError, DependencyError, reason } from "./errors.js";
import { MANIFEST } from "./layout.js";
import { LARGEST_MANIFEST } from "./manifest.js";
import type { FileEntry } from "./manifestSections.js";

/** What a source tells on the way, and asks. */
export interface Progress {
  /** So many bytes more were read. */
  add(bytes: number): void;
  readonly signal: AbortSignal | undefined;
}

/** A bundle's files. */
export interface Source {
  /** The content of manifest.json, of a bounded size. */
  manifest(): Promise<Uint8Array>;
  /** BundleError for a listed file that is not there, or of another size; for none where that is not known beforehand. */
  checkSizes(files: ReadonlyMap<string, FileEntry>): Promise<void>;
  /** The content of a listed file, of its stated size; hashed by the caller. */
  read(name: string, entry: FileEntry, progress: Progress): Promise<Uint8Array<ArrayBuffer>>;
  /** Called where a file's content has another hash: true to have it read once more, never twice in a row. */
  damaged(entry: FileEntry): Promise<boolean>;
  /** Called where a file's content has its hash. */
  accepted(entry: FileEntry, content: Uint8Array<ArrayBuffer>): Promise<void>;
  /** The path of a file, where there is one. */
  path(name: string): string | null;
}

/** CancelledError once a signal says so. */
export function checkSignal(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new CancelledError("expected to finish loading, got an abort; load again");
}

/** The hex sha256 of bytes; DependencyError where the page may not compute it. */
export async function sha256(content: Uint8Array<ArrayBuffer>): Promise<string> {
  if (!globalThis.crypto?.subtle) {
    throw new DependencyError(
      "expected crypto.subtle to check the bundle's hashes, got none; serve the page over https or from localhost",
    );
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A file of the wrong size. */
export function wrongSize(name: string, wanted: number, got: number): BundleError {
  return new BundleError(`expected ${name} with ${wanted} bytes, got ${got}; the file is damaged, copy it again`);
}

function missing(name: string): BundleError {
  return new BundleError(`expected the bundle's file ${name}, got none; copy the whole folder`);
}

/** Files as an <input type="file" multiple> or webkitdirectory gives them. */
export class PickedFiles implements Source {
  readonly #files = new Map<string, File>();

  constructor(files: Iterable<File>) {
    // Of a picked folder the files beside its manifest: a tuning inside it has files of the same names.
    const places = [...files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));
    const manifests = places.filter(({ file }) => file.name === MANIFEST).map(({ path }) => path);
    const folder = manifests.sort((a, b) => a.length - b.length)[0]?.slice(0, -MANIFEST.length) ?? "";
    for (const { file, path } of places) {
      if (path === folder + file.name) this.#files.set(file.name, file);
    }
  }

  async manifest(): Promise<Uint8Array> {
    const file = this.#files.get(MANIFEST);
    if (!file) throw new BundleError(`expected files with ${MANIFEST} among them, got none; pick the whole bundle`);
    if (file.size > LARGEST_MANIFEST) throw tooLarge();
    return new Uint8Array(await file.arrayBuffer());
  }

  async checkSizes(files: ReadonlyMap<string, FileEntry>): Promise<void> {
    for (const [name, { bytes }] of files) {
      const file = this.#files.get(name);
      if (!file) throw missing(name);
      if (file.size !== bytes) throw wrongSize(name, bytes, file.size);
    }
  }

  async read(name: string, _entry: FileEntry, progress: Progress): Promise<Uint8Array<ArrayBuffer>> {
    checkSignal(progress.signal);
    const file = this.#files.get(name) as File;
    let content: ArrayBuffer;
    try {
      content = await file.arrayBuffer();
    } catch (error) {
      throw new BundleError(`expected to read ${name}, got ${reason(error)}; pick the files again`, { cause: error });
    }
    progress.add(content.byteLength);
    return new Uint8Array(content);
  }

  async damaged(): Promise<boolean> {
    return false;
  }

  async accepted(): Promise<void> {}

  path(): null {
    return null;
  }
}

export function tooLarge(): BundleError {
  return new BundleError(`expected ${MANIFEST} of at most ${LARGEST_MANIFEST} bytes, got more; export the bundle again`);
}
