//! kt_layer_norm: rows over the pool.
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const Member = @import("pool.zig").Member;
const c = core.c;
const invalid = c.KT_ERR_INVALID_ARG;

const rows_per_chunk = 8;

const Job = struct {
    ctx: *ctx_mod.Ctx,
    x: check.Rows,
    out: check.Rows,
    weight: [*]const f32,
    bias: ?[*]const f32,
    eps: f32,

    fn rows(self: *const Job, first: usize, end: usize) void {
        for (first..end) |row|
            self.ctx.isa.layer_norm_row.?(self.x.f32Row(row), self.weight, self.bias, self.eps, self.out.f32Row(row), self.x.n);
    }

    fn body(self: *const Job, member: *Member) void {
        const chunks = (self.x.count + rows_per_chunk - 1) / rows_per_chunk;
        while (member.claim(0, chunks)) |chunk|
            self.rows(chunk * rows_per_chunk, @min(self.x.count, (chunk + 1) * rows_per_chunk));
    }
};

fn vector(comptime name: []const u8, tensor: ?*const c.kt_tensor_t, n: i64) ?[*]const f32 {
    const t = check.f32s(name, tensor, 1) orelse return null;
    if (!check.size(name, t, 0, n)) return null;
    return @ptrCast(@alignCast(t.data.?));
}

pub fn kt_layer_norm(handle: ?*c.kt_ctx_t, x: ?*const c.kt_tensor_t, weight: ?*const c.kt_tensor_t, bias: ?*const c.kt_tensor_t, eps: f32, out: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const ndim = if (x) |t| t.ndim else 0;
    const tx = check.f32s("x", x, ndim) orelse return invalid;
    const to = check.f32s("out", out, ndim) orelse return invalid;
    for (0..ndim) |i| if (!check.size("out", to, i, tx.shape[i])) return invalid;
    const n = tx.shape[ndim - 1];
    const job: Job = .{
        .ctx = ctx,
        .x = check.rows("x", tx) orelse return invalid,
        .out = check.rows("out", to) orelse return invalid,
        .weight = vector("weight", weight, n) orelse return invalid,
        .bias = if (bias == null) null else vector("bias", bias, n) orelse return invalid,
        .eps = eps,
    };
    if (job.x.count <= rows_per_chunk) job.rows(0, job.x.count) else ctx.pool.run(&job, Job.body);
    return c.KT_OK;
}
