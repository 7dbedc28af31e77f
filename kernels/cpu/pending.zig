//! Ops whose kernels are not written yet. Remove a name when its file exports it; this file goes when the list is empty.
const core = @import("core");
const c = core.c;

fn unsupported() callconv(.c) c.kt_status_t {
    return core.status.unsupported("this op has no CPU kernel yet", .{});
}

comptime {
    for ([_][]const u8{
        "kt_fused_experts",
        "kt_qkv_rope_store",
        "kt_gate_up_act",
    }) |name| @export(&unsupported, .{ .name = name });
}
