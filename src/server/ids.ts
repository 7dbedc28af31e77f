/** 32 random letters and digits, or the first of them. */
export function randomId(length = 32): string {
  return crypto.randomUUID().replaceAll("-", "").slice(0, length)
}
