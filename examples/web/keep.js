/** One text and its state, kept in this browser (IndexedDB) until another is saved. */

const NAME = "xlstm-edge-page";
const STORE = "states";
const KEY = "last";

/** Save { bytes, text }. */
export async function keep(value) {
  await request("readwrite", (store) => store.put(value, KEY));
}

/** What was saved, or undefined. */
export async function kept() {
  return request("readonly", (store) => store.get(KEY));
}

async function request(mode, make) {
  const database = await opened();
  try {
    return await settled(make(database.transaction(STORE, mode).objectStore(STORE)));
  } finally {
    database.close();
  }
}

function opened() {
  const opening = indexedDB.open(NAME, 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
  return settled(opening);
}

function settled(made) {
  return new Promise((resolve, reject) => {
    made.onsuccess = () => resolve(made.result);
    made.onerror = () => reject(made.error);
  });
}
