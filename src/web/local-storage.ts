/** Small things in localStorage. A browser that refuses (private window, full) only means that they last for this page. */
export function read(key: string): string | null {
  try {
    return localStorage.getItem(key)
  } catch {
    return null
  }
}

export function write(key: string, value: string): void {
  try {
    if (value === "") localStorage.removeItem(key)
    else localStorage.setItem(key, value)
  } catch {
    // Kept in memory by the caller's signal.
  }
}
