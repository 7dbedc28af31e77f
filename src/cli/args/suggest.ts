/** The candidates most like `word`, best first: those that begin with it, then those within a third of its letters. */
export function similar(word: string, candidates: Iterable<string>, limit = 3): string[] {
  const wanted = word.toLowerCase()
  const scored: { candidate: string; score: number }[] = []
  for (const candidate of new Set(candidates)) {
    const text = candidate.toLowerCase()
    const distance = editDistance(wanted, text)
    const begins = wanted.length > 1 && (text.startsWith(wanted) || wanted.startsWith(text))
    if (begins || distance <= Math.max(1, Math.floor(wanted.length / 3)))
      scored.push({ candidate, score: begins ? Math.min(distance, 1) : distance })
  }
  scored.sort((a, b) => a.score - b.score)
  return scored.slice(0, limit).map(({ candidate }) => candidate)
}

/** Letters to insert, delete, replace or swap with their neighbour (Damerau, optimal string alignment). */
export function editDistance(a: string, b: string): number {
  let before: number[] = []
  let last = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1
      let best = Math.min(last[j]! + 1, row[j - 1]! + 1, last[j - 1]! + same)
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        best = Math.min(best, before[j - 2]! + 1)
      row.push(best)
    }
    before = last
    last = row
  }
  return last[b.length]!
}
