const SHT_DYNSYM = 11
const STB_LOCAL = 0
const SHN_UNDEF = 0

/** Names that a 64-bit little-endian ELF shared library defines for others, sorted (System V ABI, chapter 4). */
export function dynamicExports(file: Uint8Array): string[] {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength)
  const wide = (at: number): number => Number(view.getBigUint64(at, true))
  if (view.getUint32(0) !== 0x7f454c46) throw new Error("no ELF file")
  const sections = wide(0x28)
  const sectionSize = view.getUint16(0x3a, true)
  const header = (index: number): number => sections + index * sectionSize
  for (let i = 0; i < view.getUint16(0x3c, true); i++) {
    if (view.getUint32(header(i) + 4, true) !== SHT_DYNSYM) continue
    const strings = wide(header(view.getUint32(header(i) + 0x28, true)) + 0x18)
    const start = wide(header(i) + 0x18)
    const end = start + wide(header(i) + 0x20)
    const names: string[] = []
    for (let symbol = start; symbol < end; symbol += 24) {
      const isLocal = view.getUint8(symbol + 4) >> 4 === STB_LOCAL
      if (isLocal || view.getUint16(symbol + 6, true) === SHN_UNDEF) continue
      const name = strings + view.getUint32(symbol, true)
      names.push(new TextDecoder().decode(file.subarray(name, file.indexOf(0, name))))
    }
    return names.sort()
  }
  throw new Error("the ELF file has no dynamic symbols")
}
