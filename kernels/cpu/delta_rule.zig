//! kt_causal_conv1d, kt_gated_delta_rule: chains of segments times heads (or channels) over the pool. A chain's tokens are
//! taken one after another, so that results are the same however a prompt is cut.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const Member = @import("pool.zig").Member;
const Segments = @import("segments.zig").Segments;
const c = core.c;
const isa = ctx_mod.isa;
const status = core.status;
const invalid = c.KT_ERR_INVALID_ARG;

const max_kernel = 16;
const max_k_dim = 256;
const conv_columns = 256;
const delta_columns: usize = isa.KT_DELTA_COLUMNS;
const line_floats = 16;

fn floats(t: *const check.Tensor, offset: i64) [*]f32 {
    return @ptrCast(@alignCast(@as([*]u8, @ptrCast(t.data.?)) + @as(usize, @bitCast(offset))));
}

fn dense(comptime name: []const u8, t: *const check.Tensor) bool {
    var stride: i64 = @sizeOf(f32);
    var dim: usize = t.ndim;
    while (dim > 0) {
        dim -= 1;
        if (t.shape[dim] != 1 and t.stride[dim] != stride) {
            _ = status.invalid("{s} has dimension {d} strided by {d} bytes, expected {d}", .{ name, dim, t.stride[dim], stride });
            return false;
        }
        stride *= t.shape[dim];
    }
    return true;
}

/// Strides in floats; those between tokens, heads and groups may be of any multiple.
fn strideOf(t: *const check.Tensor, dim: usize) i64 {
    return @divExact(t.stride[dim], @sizeOf(f32));
}

fn aligned(comptime name: []const u8, t: *const check.Tensor) bool {
    for (t.stride[0..t.ndim]) |stride| if (@rem(stride, @sizeOf(f32)) != 0) {
        _ = status.invalid("{s} has a stride of {d} bytes", .{ name, stride });
        return false;
    };
    return true;
}

const Conv = struct {
    ctx: *ctx_mod.Ctx,
    x: *const check.Tensor,
    out: *const check.Tensor,
    state: *const check.Tensor,
    weight: [*]const f32,
    kernel: i64,
    segments: Segments,
    chains: []const u32,
    blocks: usize, // of columns, in a group

    fn item(self: *const Conv, index: usize) void {
        const groups: usize = @intCast(self.x.shape[1]);
        const n: usize = @intCast(self.x.shape[2]);
        const first = index % self.blocks * conv_columns;
        const group = index / self.blocks % groups;
        const chain = index / self.blocks / groups;
        const channel: i64 = @intCast(group * n + first);
        const channels = self.state.shape[2];
        const slot_floats = (self.kernel - 1) * channels;
        for (self.chains[chain]..self.chains[chain + 1]) |g| {
            const token: i64 = self.segments.start[g];
            const source: i64 = self.segments.source[g];
            const target = floats(self.state, 4 * (self.segments.target[g] * slot_floats + channel));
            self.ctx.isa.conv_segment.?(
                floats(self.x, token * self.x.stride[0] + @as(i64, @intCast(group)) * self.x.stride[1]) + first,
                strideOf(self.x, 0),
                self.weight + @as(usize, @intCast(channel)),
                channels,
                self.kernel,
                if (source < 0) null else floats(self.state, 4 * (source * slot_floats + channel)),
                target,
                channels,
                floats(self.out, token * self.out.stride[0] + @as(i64, @intCast(group)) * self.out.stride[1]) + first,
                strideOf(self.out, 0),
                self.segments.start[g + 1] - token,
                @intCast(@min(conv_columns, n - first)),
            );
        }
    }

    fn body(self: *const Conv, member: *Member) void {
        const total = self.segments.chains * @as(usize, @intCast(self.x.shape[1])) * self.blocks;
        while (member.claim(0, total)) |index| self.item(index);
    }
};

pub fn kt_causal_conv1d(handle: ?*c.kt_ctx_t, x: ?*const c.kt_tensor_t, weight: ?*const c.kt_tensor_t, segments: ?*const c.kt_state_segments_t, state: ?*const c.kt_tensor_t, out: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const tx = check.f32s("x", x, 3) orelse return invalid;
    const tw = check.f32s("weight", weight, 2) orelse return invalid;
    const ts = check.f32s("state", state, 3) orelse return invalid;
    const to = check.f32s("out", out, 3) orelse return invalid;
    const kernel = tw.shape[0];
    if (kernel < 2 or kernel > max_kernel) return status.invalid("weight has a kernel of {d}, expected 2 to {d}", .{ kernel, max_kernel });
    if (!check.size("weight", tw, 1, tx.shape[1] * tx.shape[2])) return invalid;
    if (!check.size("state", ts, 1, kernel - 1) or !check.size("state", ts, 2, tw.shape[1])) return invalid;
    for (0..3) |i| if (!check.size("out", to, i, tx.shape[i])) return invalid;
    if (!dense("weight", tw) or !dense("state", ts) or !aligned("x", tx) or !aligned("out", to)) return invalid;
    const parts = Segments.from(segments, tx.shape[0], ts.shape[0]) orelse return invalid;
    const memory = ctx.reserve((parts.chains + 1) * @sizeOf(u32)) catch return status.outOfMemory(@intCast((parts.chains + 1) * @sizeOf(u32)));
    const chains: []u32 = @as([*]u32, @ptrCast(@alignCast(memory.ptr)))[0 .. parts.chains + 1];
    parts.writeChains(chains);
    const job: Conv = .{
        .ctx = ctx,
        .x = tx,
        .out = to,
        .state = ts,
        .weight = floats(tw, 0),
        .kernel = kernel,
        .segments = parts,
        .chains = chains,
        .blocks = std.math.divCeil(usize, @intCast(tx.shape[2]), conv_columns) catch unreachable,
    };
    ctx.pool.run(&job, Conv.body);
    return c.KT_OK;
}

const Delta = struct {
    ctx: *ctx_mod.Ctx,
    q: *const check.Tensor,
    k: *const check.Tensor,
    v: *const check.Tensor,
    b: *const check.Tensor,
    a: *const check.Tensor,
    state: *const check.Tensor,
    out: *const check.Tensor,
    rate: [*]const f32,
    dt_bias: [*]const f32,
    scale: f32,
    eps: f32,
    segments: Segments,
    chains: []const u32,
    tiles: usize, // of columns, in a head
    scratch: [*]f32,

    /// Floats of one thread: a tile of the state, q and k.
    fn scratchFloats(k_dim: usize) usize {
        return std.mem.alignForward(usize, k_dim * (delta_columns + 2), line_floats);
    }

    fn item(self: *const Delta, index: usize, scratch: [*]f32) void {
        const group_size: usize = @intCast(self.v.shape[2]);
        const heads = @as(usize, @intCast(self.v.shape[1])) * group_size;
        const k_dim: usize = @intCast(self.k.shape[2]);
        const v_dim: usize = @intCast(self.v.shape[3]);
        const column = index % self.tiles * delta_columns;
        const head = index / self.tiles % heads;
        const chain = index / self.tiles / heads;
        const n = @min(delta_columns, v_dim - column);
        const k_head: i64 = @intCast(head / group_size);
        const member: i64 = @intCast(head % group_size);
        const q = scratch + k_dim * delta_columns;
        const k = q + k_dim;
        const head_offset: i64 = @intCast(head * k_dim * v_dim + column);
        const slot_floats: i64 = @intCast(heads * k_dim * v_dim);
        for (self.chains[chain]..self.chains[chain + 1]) |g| {
            var in: [*]const f32 = scratch;
            var in_stride: usize = delta_columns;
            const source: i64 = self.segments.source[g];
            if (source < 0) {
                @memset(scratch[0 .. k_dim * delta_columns], 0);
            } else {
                in = floats(self.state, 4 * (source * slot_floats + head_offset));
                in_stride = v_dim;
            }
            const end: i64 = self.segments.start[g + 1];
            var token: i64 = self.segments.start[g];
            while (token < end) : (token += 1) {
                const is_last = token + 1 == end;
                const to = if (is_last) floats(self.state, 4 * (self.segments.target[g] * slot_floats + head_offset)) else scratch;
                const to_stride = if (is_last) v_dim else delta_columns;
                self.ctx.isa.l2_norm_row.?(floats(self.q, token * self.q.stride[0] + k_head * self.q.stride[1]), self.scale, self.eps, q, @intCast(k_dim));
                self.ctx.isa.l2_norm_row.?(floats(self.k, token * self.k.stride[0] + k_head * self.k.stride[1]), 1, self.eps, k, @intCast(k_dim));
                const b = floats(self.b, token * self.b.stride[0] + k_head * self.b.stride[1] + member * self.b.stride[2])[0];
                const a = floats(self.a, token * self.a.stride[0] + k_head * self.a.stride[1] + member * self.a.stride[2])[0];
                var beta: f32 = undefined;
                var decay: f32 = undefined;
                self.ctx.isa.delta_gates.?(b, a + self.dt_bias[head], self.rate[head], &beta, &decay);
                self.ctx.isa.delta_step.?(
                    q,
                    k,
                    floats(self.v, token * self.v.stride[0] + k_head * self.v.stride[1] + member * self.v.stride[2]) + column,
                    decay,
                    beta,
                    in,
                    @intCast(in_stride),
                    to,
                    @intCast(to_stride),
                    floats(self.out, token * self.out.stride[0] + k_head * self.out.stride[1] + member * self.out.stride[2]) + column,
                    @intCast(k_dim),
                    @intCast(n),
                );
                in = to;
                in_stride = to_stride;
            }
        }
    }

    fn body(self: *const Delta, member: *Member) void {
        const heads: usize = @intCast(self.v.shape[1] * self.v.shape[2]);
        const scratch = self.scratch + member.index * scratchFloats(@intCast(self.k.shape[2]));
        const total = self.segments.chains * heads * self.tiles;
        while (member.claim(0, total)) |index| self.item(index, scratch);
    }
};

fn vector(comptime name: []const u8, given: ?*const c.kt_tensor_t, length: i64) ?[*]const f32 {
    const t = check.f32s(name, given, 1) orelse return null;
    return if (check.size(name, t, 0, length)) floats(t, 0) else null;
}

pub fn kt_gated_delta_rule(handle: ?*c.kt_ctx_t, args: ?*const c.kt_delta_rule_args_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const g = args orelse return status.invalid("args are NULL", .{});
    if (g.struct_size < @sizeOf(c.kt_delta_rule_args_t)) return status.invalid("args.struct_size is {d}", .{g.struct_size});
    const tq = check.f32s("q", g.q, 3) orelse return invalid;
    const tk = check.f32s("k", g.k, 3) orelse return invalid;
    const tv = check.f32s("v", g.v, 4) orelse return invalid;
    const tb = check.f32s("b", g.b, 3) orelse return invalid;
    const ta = check.f32s("a", g.a, 3) orelse return invalid;
    const ts = check.f32s("state", g.state, 4) orelse return invalid;
    const to = check.f32s("out", g.out, 4) orelse return invalid;
    if (tk.shape[2] > max_k_dim) return status.invalid("k has heads of {d}, at most {d}", .{ tk.shape[2], max_k_dim });
    for (0..3) |i| if (!check.size("q", tq, i, tk.shape[i])) return invalid;
    for (0..2) |i| if (!check.size("v", tv, i, tk.shape[i])) return invalid;
    for (0..3) |i| if (!check.size("b", tb, i, tv.shape[i]) or !check.size("a", ta, i, tv.shape[i])) return invalid;
    for (0..4) |i| if (!check.size("out", to, i, tv.shape[i])) return invalid;
    const heads = tv.shape[1] * tv.shape[2];
    if (!check.size("state", ts, 1, heads) or !check.size("state", ts, 2, tk.shape[2]) or !check.size("state", ts, 3, tv.shape[3])) return invalid;
    if (!dense("state", ts) or !aligned("q", tq) or !aligned("k", tk) or !aligned("v", tv) or !aligned("b", tb) or !aligned("a", ta) or !aligned("out", to)) return invalid;
    const parts = Segments.from(g.segments, tk.shape[0], ts.shape[0]) orelse return invalid;
    const chain_bytes = std.mem.alignForward(usize, (parts.chains + 1) * @sizeOf(u32), 64);
    const bytes = chain_bytes + ctx.pool.num_threads * Delta.scratchFloats(@intCast(tk.shape[2])) * @sizeOf(f32);
    const memory = ctx.reserve(bytes) catch return status.outOfMemory(@intCast(bytes));
    const chains: []u32 = @as([*]u32, @ptrCast(@alignCast(memory.ptr)))[0 .. parts.chains + 1];
    parts.writeChains(chains);
    const job: Delta = .{
        .ctx = ctx,
        .q = tq,
        .k = tk,
        .v = tv,
        .b = tb,
        .a = ta,
        .state = ts,
        .out = to,
        .rate = vector("decay", g.decay, heads) orelse return invalid,
        .dt_bias = vector("dt_bias", g.dt_bias, heads) orelse return invalid,
        .scale = g.scale,
        .eps = g.eps,
        .segments = parts,
        .chains = chains,
        .tiles = std.math.divCeil(usize, @intCast(tv.shape[3]), delta_columns) catch unreachable,
        .scratch = @ptrCast(@alignCast(memory.ptr + chain_bytes)),
    };
    ctx.pool.run(&job, Delta.body);
    return c.KT_OK;
}
