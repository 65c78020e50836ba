// Where this page is: in whose session, and where the service of its hub would be.

export interface IPlace {
  user: string;
  server: string;
  /** Path of the service on this very host. */
  prefix: string;
}

/**
 * Read it from the options that a hub's server gives to its pages; null where the service cannot be asked: outside a hub,
 * and where each user has a domain of their own (`subdomain_host`), on which the service does not answer.
 */
export function placeOf(option: (name: string) => string, hostname: string): IPlace | null {
  const hub = option('hubPrefix');
  // The owner of the server, who need not be the one who looks at it; hubs before 5 only tell the latter.
  const user = option('hubServerUser') || option('hubUser');
  if (!hub.endsWith('hub/') || !user || isBelow(hostname, option('hubHost'))) {
    return null;
  }
  const prefix = `${hub.slice(0, -'hub/'.length)}services/gpupool/`;
  return { user, server: option('hubServerName'), prefix };
}

/** Whether a host name is one below that of the hub, whose address is known only where it is configured. */
function isBelow(hostname: string, hub: string): boolean {
  try {
    return hostname.endsWith(`.${new URL(hub).hostname}`);
  } catch {
    return false;
  }
}
