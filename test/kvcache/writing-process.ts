/**
 * A process that writes blocks of the chain until it is killed: `FOLDER FROM LIMIT SEED`. It prints the number of a block once
 * the store has said that it is kept, one a line, and those of blocks that made room as "-number".
 */
import { writeSync } from "node:fs"

import { DiskStore } from "../../src/kvcache/disk-store.ts"
import { FINGERPRINT, HEADER, record } from "./chain.ts"

const [folder = "", from = "0", limit = "0", seed = "1"] = process.argv.slice(2)
const store = new DiskStore({
  folder,
  fingerprint: FINGERPRINT,
  limitBytes: Number(limit),
  headerBytes: HEADER,
  about: { model: "chain" },
})
if (!store.becomeWriter()) throw new Error("somebody else holds the lock")
const blocks = new Map<number, number[]>()
const before = store.refresh().stored.length
writeSync(1, `start ${before}\n`)
let random = Number(seed)
for (let i = Number(from); ;) {
  random = (Math.imul(random, 1_103_515_245) + 12_345) >>> 0
  const count = 1 + ((random >>> 16) % 5)
  const numbers = Array.from({ length: count }, (_, k) => i + k)
  const places = await store.append(numbers.map(record))
  places.forEach((place, k) => {
    if (place === undefined) return
    const known = blocks.get(place.segment)
    if (known === undefined) blocks.set(place.segment, [i + k])
    else known.push(i + k)
  })
  const gone = store.takeDropped().flatMap((id) => blocks.get(id) ?? [])
  writeSync(1, [...numbers, ...gone.map((n) => `-${n}`)].map((line) => `${line}\n`).join(""))
  i += count
}
