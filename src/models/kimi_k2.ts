import { registerModules } from "../nn/module.ts"
import { DeepseekV3ForCausalLM } from "./deepseek_v3.ts"

/** Kimi K2: DeepSeek-V3 with 384 experts in one group; its files call the architecture DeepseekV3ForCausalLM too. */
export class KimiK2ForCausalLM extends DeepseekV3ForCausalLM {}

registerModules({ KimiK2ForCausalLM })
