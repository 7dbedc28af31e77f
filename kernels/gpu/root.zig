//! libkt_cuda and libkt_hip: the core that all libraries share, the ops of kernels/gpu/*.cu, and an answer for each op that is missing.
const core = @import("core");
const c = core.c;

extern fn kt_gpu_pin(data: *anyopaque, bytes: usize) c.kt_status_t;
extern fn kt_gpu_unpin(data: *anyopaque) void;

/// Host memory that the core's slabs page-lock for the devices.
pub const pinning: core.slab.Pinning = .{ .pin = pin, .unpin = unpin };

fn pin(data: *anyopaque, bytes: usize) c.kt_status_t {
    return kt_gpu_pin(data, bytes);
}

fn unpin(data: *anyopaque) void {
    kt_gpu_unpin(data);
}

/// What kernels/gpu/*.cu do not export.
const missing = [_][]const u8{
    "kt_quantize",
};

comptime {
    core.exportMissing(&missing);
}
