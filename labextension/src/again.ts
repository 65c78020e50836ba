// Queues again: sends the hub's own form of that server, filled in with the same profile, as the person would.

/** The hub's spawn form, read from its page: where it goes, and its fields with the profile chosen. */
export interface IForm {
  action: string;
  fields: [string, string][];
}

/** Reads the form out of a page; null where the page has none in which this profile can be chosen. */
export type ReadForm = (html: string, profile: string) => IForm | null;

/**
 * Ask for the same session again; returns the address to go to. Where the form cannot be sent (nobody is logged in any
 * more, the profile is closed, the hub refuses), that is the form itself, which says why.
 */
export async function queueAgain(
  again: string,
  profile: string,
  fetch: (url: string, init: RequestInit) => Promise<Response>,
  read: ReadForm
): Promise<string> {
  try {
    // A plain GET, as for a picture: any other mode would want the hub's token, which only this page gives.
    const page = await fetch(again, { mode: 'no-cors', credentials: 'same-origin', cache: 'no-store' });
    const found = page.ok ? read(await page.text(), profile) : null;
    if (found === null) {
      return again;
    }
    const answer = await fetch(found.action, {
      method: 'POST',
      credentials: 'same-origin',
      redirect: 'manual',
      body: new URLSearchParams(found.fields)
    });
    // The hub leads on once it has taken the request; from the form's bare address, to the place in the queue.
    return answer.type === 'opaqueredirect' ? again.split('?')[0] : again;
  } catch {
    return again;
  }
}

/** Whether an address is a path of this very host. */
export function isPath(address: string): boolean {
  return /^\/(?![/\\])/.test(address);
}
