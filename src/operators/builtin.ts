import { registerExperts } from "./experts.ts"
import { registerFused } from "./fused.ts"
import { registerKept } from "./kept.ts"
import { registerLinear } from "./linear.ts"
import { operators } from "./registry.ts"

// importing this file makes the built-in operators known, once
registerKept(operators)
registerLinear(operators)
registerExperts(operators)
registerFused(operators)

export { operators }
