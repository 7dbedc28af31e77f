/** Lines for the plan about implementations that rules ask for and the CPU's own op replaces. */
export function standIns(cpuOp: string, asked: readonly (string | null | undefined)[]): string[] {
  const others = new Set<string>()
  for (const op of asked) {
    if (op !== undefined && op !== null && op !== "None" && op !== cpuOp) others.add(op)
  }
  return [...others].map((op) => `${op}: ${cpuOp} stands in`)
}
