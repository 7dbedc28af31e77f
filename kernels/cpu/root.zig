//! libkt_cpu. Each file exports the ops of its name: they check descriptors, split work over the pool and call the ISA table.
comptime {
    _ = @import("core");
    _ = @import("ctx.zig");
    _ = @import("rms_norm.zig");
    _ = @import("layer_norm.zig");
    _ = @import("linear.zig");
    _ = @import("elementwise.zig");
    _ = @import("quantize.zig");
    _ = @import("embedding.zig");
    _ = @import("rope.zig");
    _ = @import("attention.zig");
    _ = @import("activation.zig");
    _ = @import("moe_router.zig");
    _ = @import("logprobs.zig");
    _ = @import("sampling.zig");
    _ = @import("measure.zig");
    _ = @import("fused.zig");
    _ = @import("moe.zig");
    _ = @import("head_linear.zig");
    _ = @import("delta_rule.zig");
    _ = @import("gates.zig");
    _ = @import("device.zig");
}

test {
    _ = @import("core");
    _ = @import("cpuid.zig");
    _ = @import("pool.zig");
    _ = @import("topology.zig");
    _ = @import("ctx.zig");
    _ = @import("vmath_test.zig");
    _ = @import("candidates.zig");
    _ = @import("moe_groups.zig");
    _ = @import("device.zig");
}
