//! kt_moe_router: which experts a token goes to.
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
    bias: ?[*]const f32,
    params: *const c.kt_router_params_t,
    ids: check.Rows,
    weights: check.Rows,

    fn chunk(self: *const Job, index: usize) void {
        const first = index * rows_per_chunk;
        for (first..@min(self.logits.count, first + rows_per_chunk)) |row| {
            const ids: [*]i32 = @ptrCast(@alignCast(self.ids.data + row * self.ids.stride));
            self.ctx.isa.router_row.?(self.logits.f32Row(row), self.bias, self.logits.n, self.ids.n, @ptrCast(self.params), ids, self.weights.f32Row(row));
        }
    }

    fn chunks(self: *const Job) usize {
        return std.math.divCeil(usize, self.logits.count, rows_per_chunk) catch unreachable;
    }

    fn body(self: *const Job, member: *Member) void {
        while (member.claim(0, self.chunks())) |index| self.chunk(index);
    }
};

fn validParams(p: *const c.kt_router_params_t, experts: i64, k: i64) bool {
    const status = core.status;
    if (p.struct_size < @sizeOf(c.kt_router_params_t)) {
        _ = status.invalid("params.struct_size is {d}", .{p.struct_size});
        return false;
    }
    if (p.score > c.KT_SCORE_CHOSEN_SOFTMAX or p.norm > 1 or p.group_score > c.KT_GROUP_TOP2_SUM) {
        _ = status.invalid("params have score {d}, norm {d}, group_score {d}: one is unknown", .{ p.score, p.norm, p.group_score });
        return false;
    }
    if (p.num_groups < 1 or @rem(experts, p.num_groups) != 0) {
        _ = status.invalid("{d} experts in {d} groups", .{ experts, p.num_groups });
        return false;
    }
    if (p.topk_groups < 1 or p.topk_groups > p.num_groups) {
        _ = status.invalid("{d} of {d} groups", .{ p.topk_groups, p.num_groups });
        return false;
    }
    const available = @divExact(experts, p.num_groups) * p.topk_groups;
    if (k > available) {
        _ = status.invalid("ids has {d} columns, there are {d} experts to choose from", .{ k, available });
        return false;
    }
    return true;
}

export fn kt_moe_router(handle: ?*c.kt_ctx_t, logits: ?*const c.kt_tensor_t, bias: ?*const c.kt_tensor_t, params: ?*const c.kt_router_params_t, ids: ?*const c.kt_tensor_t, weights: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const p = params orelse return core.status.invalid("params are NULL", .{});
    const tl = check.f32s("logits", logits, 2) orelse return invalid;
    const ti = check.i32s("ids", ids, 2) orelse return invalid;
    const tw = check.f32s("weights", weights, 2) orelse return invalid;
    if (tl.shape[1] > ctx_mod.isa.KT_MAX_EXPERTS)
        return core.status.unsupported("{d} experts, at most {d}", .{ tl.shape[1], ctx_mod.isa.KT_MAX_EXPERTS });
    if (!validParams(p, tl.shape[1], ti.shape[1])) return invalid;
    var biases: ?[*]const f32 = null;
    if (bias != null) {
        const tb = check.f32s("bias", bias, 1) orelse return invalid;
        if (!check.size("bias", tb, 0, tl.shape[1])) return invalid;
        biases = @ptrCast(@alignCast(tb.data.?));
    }
    if (!check.size("ids", ti, 0, tl.shape[0])) return invalid;
    for (0..2) |i| if (!check.size("weights", tw, i, ti.shape[i])) return invalid;
    const job: Job = .{
        .ctx = ctx,
        .logits = check.rows("logits", tl) orelse return invalid,
        .bias = biases,
        .params = p,
        .ids = check.rows("ids", ti) orelse return invalid,
        .weights = check.rows("weights", tw) orelse return invalid,
    };
    if (job.chunks() == 1) job.chunk(0) else ctx.pool.run(&job, Job.body);
    return c.KT_OK;
}
