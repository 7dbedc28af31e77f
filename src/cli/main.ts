#!/usr/bin/env bun
import { runCommandLine } from "./run-command-line.ts"

// not left to the event loop: a timer that nobody waits for would hold the process
process.exit(await runCommandLine(process.argv.slice(2)))
