//! kt_moe_router: which experts a token goes to; kt_norm_router: the same from the residual on.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const mm = @import("matmul.zig");
const normOf = @import("linear.zig").normOf;
const Member = @import("pool.zig").Member;
const c = core.c;
const status = core.status;
const invalid = c.KT_ERR_INVALID_ARG;

const rows_per_chunk = 16;
const max_experts = ctx_mod.isa.KT_MAX_EXPERTS;

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

/// The choice from rows of logits; null with the error recorded.
fn choice(ctx: *ctx_mod.Ctx, tokens: i64, experts: i64, logits: check.Rows, bias: ?*const c.kt_tensor_t, params: ?*const c.kt_router_params_t, ids: ?*const c.kt_tensor_t, weights: ?*const c.kt_tensor_t) ?Job {
    const p = params orelse {
        _ = status.invalid("params are NULL", .{});
        return null;
    };
    const ti = check.i32s("ids", ids, 2) orelse return null;
    const tw = check.f32s("weights", weights, 2) orelse return null;
    if (!validParams(p, experts, ti.shape[1])) return null;
    const biases = mm.vector("bias", bias, experts) catch return null;
    if (!check.size("ids", ti, 0, tokens)) return null;
    for (0..2) |i| if (!check.size("weights", tw, i, ti.shape[i])) return null;
    return .{
        .ctx = ctx,
        .logits = logits,
        .bias = biases,
        .params = p,
        .ids = check.rows("ids", ti) orelse return null,
        .weights = check.rows("weights", tw) orelse return null,
    };
}

pub fn kt_moe_router(handle: ?*c.kt_ctx_t, logits: ?*const c.kt_tensor_t, bias: ?*const c.kt_tensor_t, params: ?*const c.kt_router_params_t, ids: ?*const c.kt_tensor_t, weights: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const tl = check.f32s("logits", logits, 2) orelse return invalid;
    const rows = check.rows("logits", tl) orelse return invalid;
    if (tl.shape[1] > max_experts) return status.unsupported("{d} experts, at most {d}", .{ tl.shape[1], max_experts });
    const job = choice(ctx, tl.shape[0], tl.shape[1], rows, bias, params, ids, weights) orelse return invalid;
    if (job.chunks() == 1) job.chunk(0) else ctx.pool.run(&job, Job.body);
    return c.KT_OK;
}

const NormRouter = struct {
    choice: Job,
    x: check.Rows,
    norm: mm.Norm,
    normed: check.Rows,
    /// Of x with the norm where every thread makes its own copy, else of normed.
    input: mm.Input,
    weight: mm.Weight,
    logit_bias: ?[*]const f32,
    tasks: mm.Tasks,
    to_come: *std.atomic.Value(usize) = undefined,
    scratch: [*]u8 = undefined,
    scratch_bytes: usize,

    fn body(self: *const NormRouter, member: *Member) void {
        if (!self.input.private) {
            while (member.claim(2, self.x.count)) |token|
                self.choice.ctx.isa.rms_norm_row.?(self.x.f32Row(token), self.norm.weight, self.norm.eps, self.norm.offset, self.normed.f32Row(token), self.x.n);
            member.barrier();
        }
        self.input.prepare(member);
        var job = self.input.job(self.weight, member.index);
        job.bias = self.logit_bias;
        job.out = @ptrCast(@alignCast(self.choice.logits.data));
        job.out_stride = @intCast(self.weight.rows);
        while (member.claim(1, self.tasks.total)) |task| {
            const r = self.tasks.range(task);
            self.choice.ctx.isa.matmul.?(&job, @intCast(r.row0), @intCast(r.row1), @intCast(r.token0), @intCast(r.token1), self.scratch + member.index * self.scratch_bytes);
            // the last to finish has all logits and, with few tokens, no reason to share the rest
            if (self.input.private and self.to_come.fetchSub(1, .acq_rel) == 1) self.finish(member.index);
        }
        if (self.input.private) return;
        member.barrier();
        while (member.claim(3, self.choice.chunks())) |index| self.choice.chunk(index);
    }

    fn finish(self: *const NormRouter, member_index: u32) void {
        const n: usize = @intCast(self.x.n);
        for (0..self.x.count) |token| @memcpy(self.normed.f32Row(token)[0..n], self.input.floatRow(member_index, token)[0..n]);
        self.choice.chunk(0);
    }
};

pub fn kt_norm_router(handle: ?*c.kt_ctx_t, x: ?*const c.kt_tensor_t, norm_weight: ?*const c.kt_tensor_t, eps: f32, offset: f32, w: ?*const c.kt_tensor_t, logit_bias: ?*const c.kt_tensor_t, bias: ?*const c.kt_tensor_t, params: ?*const c.kt_router_params_t, normed: ?*const c.kt_tensor_t, ids: ?*const c.kt_tensor_t, weights: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const tx = check.f32s("x", x, 2) orelse return invalid;
    const tn = check.f32s("normed", normed, 2) orelse return invalid;
    for (0..2) |i| if (!check.size("normed", tn, i, tx.shape[i])) return invalid;
    const weight = mm.Weight.from("w", ctx, w, tx.shape[1]) orelse return invalid;
    const norm = (normOf("norm_weight", norm_weight, eps, offset, tx.shape[1]) catch return invalid) orelse
        return status.invalid("norm_weight is NULL", .{});
    const rows = check.rows("x", tx) orelse return invalid;
    const rows_normed = check.rows("normed", tn) orelse return invalid;
    // one that asks for the normed rows in f32 whatever the router's type
    var floats = weight;
    floats.quantized = false;
    var input = mm.Input.init(ctx, rows, norm, &.{ weight, floats });
    if (!input.private) input = mm.Input.init(ctx, rows_normed, null, &.{weight});
    const experts: i64 = @intCast(weight.rows);
    if (experts > max_experts) return status.unsupported("{d} experts, at most {d}", .{ experts, max_experts });
    var layout: mm.Scratch = .{};
    const copies_at = layout.add(input.scratchBytes());
    const logits_at = layout.add(rows.count * weight.rows * 4);
    const counter_at = layout.add(@sizeOf(usize));
    const per_thread = mm.matmulScratch(ctx, weight.cols);
    const scratch_at = layout.add(per_thread * ctx.pool.num_threads);
    const memory = layout.reserve(ctx) orelse return c.KT_ERR_OUT_OF_MEMORY;
    const logits: check.Rows = .{ .data = memory + logits_at, .count = rows.count, .stride = weight.rows * 4, .n = experts };
    var region: NormRouter = .{
        .choice = choice(ctx, tx.shape[0], experts, logits, bias, params, ids, weights) orelse return invalid,
        .x = rows,
        .norm = norm,
        .normed = rows_normed,
        .input = input,
        .weight = weight,
        .logit_bias = mm.vector("logit_bias", logit_bias, experts) catch return invalid,
        .tasks = mm.Tasks.of(ctx, weight, input.tokens, input.tile_tokens),
        .scratch = memory + scratch_at,
        .scratch_bytes = per_thread,
    };
    region.input.copies = memory + copies_at;
    region.to_come = @ptrCast(@alignCast(memory + counter_at));
    region.to_come.* = .init(region.tasks.total);
    ctx.pool.run(&region, NormRouter.body);
    return c.KT_OK;
}
