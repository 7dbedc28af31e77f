import { describe, expect, test } from "bun:test"
import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"

import { parseArguments } from "../../src/cli/args/parse.ts"
import { serve } from "../../src/cli/serve.ts"
import { temporaryFolder } from "../cli/kt.ts"
import { ROOT } from "../setup.ts"

const unit = readFileSync(join(ROOT, "packaging/kt.service"), "utf8")
const container = readFileSync(join(ROOT, "packaging/Containerfile"), "utf8")
const ANALYZE = Bun.which("systemd-analyze")

describe("packaging", () => {
  test("the command lines of the unit and the container are ours", () => {
    const started = /^ExecStart=\S+ serve (.*)$/m.exec(unit)?.[1]?.split(" ")
    const contained = JSON.parse(/^CMD (.*)$/m.exec(container)?.[1] ?? "") as string[]
    expect(parseArguments(serve, started ?? []).invocation.flags).toMatchObject({
      port: 10002,
      grace: 30,
    })
    expect(contained[0]).toBe("serve")
    expect(parseArguments(serve, contained.slice(1)).invocation.flags).toMatchObject({
      host: "0.0.0.0",
    })
  })

  test.skipIf(ANALYZE === null)("systemd takes the unit (skipped without systemd-analyze)", () => {
    using folder = temporaryFolder()
    const file = join(folder.path, "kt.service")
    // the binary is not installed here, and that it is missing is all that may be wrong
    writeFileSync(file, unit.replaceAll("/usr/local/bin/kt", "/bin/true"))
    const { exitCode, stderr } = Bun.spawnSync([ANALYZE as string, "verify", file])
    expect(stderr.toString()).toBe("")
    expect(exitCode).toBe(0)
  })
})
