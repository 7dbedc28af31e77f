//! libkt_cpu. Each file exports the ops of its name: they check descriptors, split work over the pool and call the ISA table.
const graph = @import("graph.zig");

/// Files of ops: each `pub fn kt_*` is exported as one that a graph can hold, what they export themselves is not.
const ops = .{
    @import("rms_norm.zig"),
    @import("layer_norm.zig"),
    @import("linear.zig"),
    @import("elementwise.zig"),
    @import("quantize.zig"),
    @import("embedding.zig"),
    @import("rope.zig"),
    @import("attention.zig"),
    @import("activation.zig"),
    @import("moe_router.zig"),
    @import("logprobs.zig"),
    @import("sampling.zig"),
    @import("fused.zig"),
    @import("moe.zig"),
    @import("head_linear.zig"),
    @import("delta_rule.zig"),
    @import("gates.zig"),
    @import("device.zig"),
    @import("turns.zig"),
};

comptime {
    _ = @import("core");
    _ = @import("ctx.zig");
    _ = @import("measure.zig");
    _ = graph;
    @setEvalBranchQuota(10_000);
    for (ops) |file| for (@typeInfo(file).@"struct".decls) |decl| {
        if (@import("std").mem.startsWith(u8, decl.name, "kt_")) graph.exportOp(decl.name, @field(file, decl.name));
    };
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
    _ = @import("graph.zig");
    _ = @import("turns.zig");
}
