import { afterAll, beforeAll, describe, test } from "bun:test"
import { existsSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import puppeteer, { type Browser } from "puppeteer-core"

const CANDIDATES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]

/** Chromium's path: $CHROMIUM, else where distributions put it; `undefined` when there is none. */
function findChromium(): string | undefined {
  const asked = process.env["CHROMIUM"]
  if (asked !== undefined && asked !== "") return asked
  return CANDIDATES.find((path) => existsSync(path))
}

export interface TestBrowser {
  browser: Browser
  close(): Promise<void>
}

/** A headless Chromium with a profile of its own, which close() removes. */
async function launchChromium(executablePath: string): Promise<TestBrowser> {
  const profile = mkdtempSync(join(tmpdir(), "kt-chromium-"))
  const browser = await puppeteer.launch({
    executablePath,
    headless: true,
    userDataDir: profile,
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--disable-dev-shm-usage",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      // Without a screen Chromium reports no mouse; a desktop has one that can hover.
      "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4",
    ],
  })
  return {
    browser,
    async close() {
      await browser.close()
      rmSync(profile, { recursive: true, force: true, maxRetries: 5 })
    },
  }
}

/**
 * Tests that share a Chromium; where there is none they are skipped, with the reason.
 *
 * @param body Its parameter gives the browser to hooks and tests, before which it is launched
 */
export function describeInBrowser(name: string, body: (browser: () => TestBrowser) => void): void {
  const chromium = findChromium()
  if (chromium === undefined) {
    test.skip(`${name}: no Chromium found (install it or set CHROMIUM)`, () => {})
    return
  }
  describe(name, () => {
    let launched: TestBrowser
    beforeAll(async () => {
      launched = await launchChromium(chromium)
    })
    afterAll(() => launched.close())
    body(() => launched)
  })
}
