//! kt_measure: the machine's own limits, which every benchmark is compared with.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const Member = @import("pool.zig").Member;
const c = core.c;
const invalid = c.KT_ERR_INVALID_ARG;

/// Shares are multiples of it: what four streams read in one round.
const line_bytes = 2048;
/// What one repetition reads at least, so that meeting costs nothing beside it.
const read_bytes = 8 << 20;
const read_variants = 6;
const dot_variants = 2;
/// Work of one compute repetition: long against a barrier, short against an interruption.
const compute_rounds = 200_000;

const Job = struct {
    ctx: *ctx_mod.Ctx,
    what: u32,
    data: ?[*]u8,
    bytes: usize,
    budget_ns: u64,
    timer: std.time.Timer,
    best_rate: f64 = 0,
    operations: i64 = 0,
    going: bool = true,

    /// A thread's own share, so that its pages lie where it reads them.
    fn share(self: *const Job, member: *const Member) []u8 {
        const per_member = self.bytes / member.count / line_bytes * line_bytes;
        return (self.data.? + member.index * per_member)[0..per_member];
    }

    fn work(self: *Job, member: *const Member, repetition: usize) i64 {
        const isa = self.ctx.isa;
        switch (self.what) {
            c.KT_MEASURE_READ => {
                const part = self.share(member);
                const passes = @max(1, read_bytes / part.len);
                for (0..passes) |_|
                    std.mem.doNotOptimizeAway(isa.read_bytes.?(part.ptr, @intCast(part.len), @intCast(repetition % read_variants)));
                return @intCast(part.len * passes);
            },
            c.KT_MEASURE_INT_DOT => return isa.int_dot_rounds.?(compute_rounds, @intCast(repetition % dot_variants)),
            c.KT_MEASURE_INT4_DOT => return isa.int4_dot_rounds.?(compute_rounds),
            c.KT_MEASURE_BF16_DOT => return isa.bf16_dot_rounds.?(compute_rounds),
            else => return isa.fma_rounds.?(compute_rounds),
        }
    }

    fn body(self: *Job, member: *Member) void {
        if (self.what == c.KT_MEASURE_READ) @memset(self.share(member), 1);
        member.meet();
        var start: u64 = 0;
        if (member.index == 0) self.timer.reset();
        var repetition: usize = 0;
        while (true) : (repetition += 1) {
            // before the others may begin: a late start would give them work that is not timed, and a rate beyond the machine's
            if (member.index == 0) start = self.timer.read();
            member.meet();
            if (!self.going) return;
            const done = self.work(member, repetition);
            if (member.index == 0) self.operations = done * member.count;
            member.meet();
            if (member.index == 0) {
                const now = self.timer.read();
                const rate = @as(f64, @floatFromInt(self.operations)) * 1e9 / @as(f64, @floatFromInt(@max(1, now - start)));
                self.best_rate = @max(self.best_rate, rate);
                self.going = now < self.budget_ns;
            }
        }
    }
};

export fn kt_measure(handle: ?*c.kt_ctx_t, what: u32, bytes: i64, seconds: f32, out_rate: ?*f64) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const out = out_rate orelse return core.status.invalid("out_rate is NULL", .{});
    if (what > c.KT_MEASURE_BF16_DOT) return core.status.invalid("what is {d}, expected 0 to {d}", .{ what, c.KT_MEASURE_BF16_DOT });
    if (!(seconds > 0 and seconds <= 60)) return core.status.invalid("seconds is {d}, expected more than 0 and at most 60", .{seconds});
    var slab: ?*anyopaque = null;
    if (what == c.KT_MEASURE_READ) {
        const least = @as(i64, line_bytes) * ctx.pool.num_threads;
        if (bytes < least) return core.status.invalid("bytes is {d}, expected at least {d}", .{ bytes, least });
        const created = core.slab.kt_slab_create(bytes, c.KT_SLAB_HUGE_PAGES, &slab);
        if (created != c.KT_OK) return created;
    }
    defer core.slab.kt_slab_destroy(slab, bytes);
    var job: Job = .{
        .ctx = ctx,
        .what = what,
        .data = @ptrCast(slab),
        .bytes = @intCast(@max(0, bytes)),
        .budget_ns = @intFromFloat(seconds * 1e9),
        .timer = std.time.Timer.start() catch return core.status.unsupported("this machine has no monotonic clock", .{}),
    };
    ctx.pool.runAll(&job, Job.body);
    out.* = job.best_rate;
    return c.KT_OK;
}
