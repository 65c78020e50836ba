// Saves what has changes, as far as the page can.

import type { ISaved } from './shapes';

/** What is used of a document's context. */
export interface IDocument {
  readonly path: string;
  readonly isDisposed: boolean;
  readonly model: { readonly dirty: boolean; readonly readOnly: boolean };
  save(): Promise<void>;
}

const PATIENCE = 20_000; // milliseconds; a save that asks the person something does not hold up the others

/** Save each document once that has changes; says which were saved and which were not. */
export async function saveAll(documents: Iterable<IDocument>, patience = PATIENCE): Promise<ISaved> {
  const changed = [...new Set(documents)].filter(one => !one.isDisposed && one.model.dirty && !one.model.readOnly);
  const done = await Promise.all(changed.map(one => within(one, patience)));
  const paths = (wanted: boolean) => changed.filter((_, index) => done[index] === wanted).map(one => one.path);
  return { documents: paths(true), failed: paths(false) };
}

async function within(document: IDocument, patience: number): Promise<boolean> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<boolean>(resolve => {
    timer = setTimeout(() => resolve(false), patience);
  });
  const saved = document.save().then(
    () => true,
    () => false
  );
  const inTime = await Promise.race([saved, late]);
  clearTimeout(timer);
  return inTime;
}
