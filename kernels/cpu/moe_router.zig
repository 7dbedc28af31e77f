//! kt_topk_softmax: which experts a token goes to.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const Member = @import("pool.zig").Member;
const c = core.c;
const invalid = c.KT_ERR_INVALID_ARG;

const rows_per_chunk = 16;

const Job = struct {
    ctx: *ctx_mod.Ctx,
    logits: check.Rows,
    norm: u32,
    ids: check.Rows,
    weights: check.Rows,

    fn chunk(self: *const Job, index: usize) void {
        const first = index * rows_per_chunk;
        for (first..@min(self.logits.count, first + rows_per_chunk)) |row| {
            const ids: [*]i32 = @ptrCast(@alignCast(self.ids.data + row * self.ids.stride));
            self.ctx.isa.topk_softmax_row.?(self.logits.f32Row(row), self.logits.n, self.ids.n, self.norm, ids, self.weights.f32Row(row));
        }
    }

    fn chunks(self: *const Job) usize {
        return std.math.divCeil(usize, self.logits.count, rows_per_chunk) catch unreachable;
    }

    fn body(self: *const Job, member: *Member) void {
        while (member.claim(0, self.chunks())) |index| self.chunk(index);
    }
};

export fn kt_topk_softmax(handle: ?*c.kt_ctx_t, logits: ?*const c.kt_tensor_t, norm: u32, ids: ?*const c.kt_tensor_t, weights: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const tl = check.f32s("logits", logits, 2) orelse return invalid;
    const ti = check.i32s("ids", ids, 2) orelse return invalid;
    const tw = check.f32s("weights", weights, 2) orelse return invalid;
    if (norm > 1) return core.status.invalid("norm is {d}, expected 0 or 1", .{norm});
    if (tl.shape[1] > ctx_mod.isa.KT_MAX_EXPERTS)
        return core.status.unsupported("{d} experts, at most {d}", .{ tl.shape[1], ctx_mod.isa.KT_MAX_EXPERTS });
    if (ti.shape[1] > tl.shape[1]) return core.status.invalid("ids has {d} columns, there are {d} experts", .{ ti.shape[1], tl.shape[1] });
    if (!check.size("ids", ti, 0, tl.shape[0])) return invalid;
    for (0..2) |i| if (!check.size("weights", tw, i, ti.shape[i])) return invalid;
    const job: Job = .{
        .ctx = ctx,
        .logits = check.rows("logits", tl) orelse return invalid,
        .norm = norm,
        .ids = check.rows("ids", ti) orelse return invalid,
        .weights = check.rows("weights", tw) orelse return invalid,
    };
    if (job.chunks() == 1) job.chunk(0) else ctx.pool.run(&job, Job.body);
    return c.KT_OK;
}
