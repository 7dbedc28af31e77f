//! libkt_sycl: the core that all libraries share, the ops of kernels/sycl/*.cpp, and an answer for each op that is missing.
const core = @import("core");
const c = core.c;

extern fn kt_sycl_host_create(bytes: usize, out: *?*anyopaque) c.kt_status_t;
extern fn kt_sycl_host_destroy(data: *anyopaque) bool;

/// SYCL page-locks memory that it takes itself.
pub const pinning: core.slab.Pinning = .{ .pin = pin, .unpin = unpin, .create = create, .destroy = destroy };

fn pin(_: *anyopaque, _: usize) c.kt_status_t {
    return core.status.unsupported("this library cannot page-lock memory that it has not taken", .{});
}

fn unpin(_: *anyopaque) void {}

fn create(bytes: usize, out: *?*anyopaque) c.kt_status_t {
    return kt_sycl_host_create(bytes, out);
}

fn destroy(data: *anyopaque) bool {
    return kt_sycl_host_destroy(data);
}

/// What kernels/sycl/*.cpp do not export.
const missing = [_][]const u8{
    "kt_graph_start",
    "kt_turn_signal",
    "kt_turn_wait",
    "kt_packed_bytes",
    "kt_pack_weight",
    "kt_quantize",
    "kt_head_linear",
    "kt_causal_conv1d",
    "kt_gated_delta_rule",
    "kt_gated_rms_norm",
    "kt_argmax",
    "kt_mask_logits",
    "kt_sample",
    "kt_logprobs",
};

comptime {
    core.exportMissing(&missing);
}
