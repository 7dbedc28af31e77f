//! kt_gated_rms_norm, kt_sigmoid_mul: rows of strided tensors over the pool.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const rowOffset = @import("elementwise.zig").rowOffset;
const Member = @import("pool.zig").Member;
const c = core.c;
const invalid = c.KT_ERR_INVALID_ARG;

/// Values of one claimed piece; less work than this in all is done by the caller alone.
const piece_values = 4096;

const Job = struct {
    ctx: *ctx_mod.Ctx,
    x: *const check.Tensor,
    gate: *const check.Tensor,
    out: *const check.Tensor,
    /// Null: no norm, the gate is a sigmoid.
    weight: ?[*]const f32,
    eps: f32,
    rows: usize,

    fn row(self: *const Job, index: usize) void {
        const n = self.x.shape[self.x.ndim - 1];
        const x = rowOf(self.x, index);
        const gate = rowOf(self.gate, index);
        const out = rowOf(self.out, index);
        if (self.weight) |weight| {
            self.ctx.isa.rms_norm_row.?(x, weight, self.eps, 0, out, n);
            self.ctx.isa.act_mul_row.?(c.KT_ACT_SILU, gate, out, out, n);
        } else self.ctx.isa.sigmoid_mul_row.?(x, gate, @intFromBool(self.gate.shape[self.gate.ndim - 1] == n), out, n);
    }

    fn rowsPerPiece(self: *const Job) usize {
        return @max(1, piece_values / @as(usize, @intCast(self.x.shape[self.x.ndim - 1])));
    }

    fn body(self: *const Job, member: *Member) void {
        const step = self.rowsPerPiece();
        const pieces = std.math.divCeil(usize, self.rows, step) catch unreachable;
        while (member.claim(0, pieces)) |piece|
            for (piece * step..@min(self.rows, (piece + 1) * step)) |index| self.row(index);
    }
};

fn rowOf(t: *const check.Tensor, index: usize) [*]f32 {
    return @ptrCast(@alignCast(@as([*]u8, @ptrCast(t.data.?)) + rowOffset(t, index)));
}

pub fn kt_gated_rms_norm(handle: ?*c.kt_ctx_t, x: ?*const c.kt_tensor_t, gate: ?*const c.kt_tensor_t, weight: ?*const c.kt_tensor_t, eps: f32, out: ?*const c.kt_tensor_t) c.kt_status_t {
    const tw = check.f32s("weight", weight, 1) orelse return invalid;
    return run(handle, x, gate, tw, eps, out);
}

pub fn kt_sigmoid_mul(handle: ?*c.kt_ctx_t, x: ?*const c.kt_tensor_t, gate: ?*const c.kt_tensor_t, out: ?*const c.kt_tensor_t) c.kt_status_t {
    return run(handle, x, gate, null, 0, out);
}

fn run(handle: ?*c.kt_ctx_t, x: ?*const c.kt_tensor_t, gate: ?*const c.kt_tensor_t, weight: ?*const c.kt_tensor_t, eps: f32, out: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const ndim = if (x) |t| t.ndim else 0;
    if (ndim < 1 or ndim > 4) return core.status.invalid("x has {d} dimensions, expected 1 to 4", .{ndim});
    const tx = check.f32s("x", x, ndim) orelse return invalid;
    const tg = check.f32s("gate", gate, ndim) orelse return invalid;
    const to = check.f32s("out", out, ndim) orelse return invalid;
    const n = tx.shape[ndim - 1];
    var rows: usize = 1;
    for (0..ndim - 1) |i| {
        if (!check.size("gate", tg, i, tx.shape[i])) return invalid;
        rows *= @intCast(tx.shape[i]);
    }
    const is_shared = weight == null and tg.shape[ndim - 1] == 1;
    if (!is_shared and !check.size("gate", tg, ndim - 1, n)) return invalid;
    for (0..ndim) |i| if (!check.size("out", to, i, tx.shape[i])) return invalid;
    var job: Job = .{ .ctx = ctx, .x = tx, .gate = tg, .out = to, .weight = null, .eps = eps, .rows = rows };
    if (weight) |tw| {
        if (!check.size("weight", tw, 0, n)) return invalid;
        job.weight = @ptrCast(@alignCast(tw.data.?));
    }
    if (rows <= job.rowsPerPiece()) {
        for (0..rows) |index| job.row(index);
    } else ctx.pool.run(&job, Job.body);
    return c.KT_OK;
}
